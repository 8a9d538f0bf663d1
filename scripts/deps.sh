#!/bin/sh
# Installs the system packages that are missing, and says which. Root is asked
# for (sudo) only when there is something to install.
#
#   scripts/deps.sh run         what `make run` and users need
#   scripts/deps.sh run test    and what the tests need
#
# Where distributions differ, they differ here and in
# internal/node/nyx/guestbundle (the kernel package's name) alone.
set -eu

want=""
need() { # need COMMAND PACKAGE
	command -v "$1" >/dev/null 2>&1 || PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || want="$want $2"
}
for group in "$@"; do
	case $group in
	run)
		need qemu-system-x86_64 qemu-system-x86
		need mke2fs e2fsprogs
		need busybox busybox-static
		need mmdebstrap mmdebstrap
		need dpkg-deb dpkg
		need apt-get apt
		[ -e /etc/ssl/certs/ca-certificates.crt ] || want="$want ca-certificates"
		# mmdebstrap as an ordinary user maps a range of user IDs.
		[ "$(id -u)" = 0 ] || need newuidmap uidmap
		;;
	test)
		need gcc gcc
		[ -e /usr/include/stdlib.h ] || want="$want libc6-dev"
		need ldd libc-bin
		# scripts/firecracker-test.sh downloads with it; it brings python3.
		python3 -m pip --version >/dev/null 2>&1 || want="$want python3-pip"
		# scripts/schemathesis.sh installs into one.
		python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || want="$want python3-venv"
		need curl curl
		need jq jq
		;;
	*)
		echo "deps: unknown group $group" >&2
		exit 2
		;;
	esac
done
# busybox must be the static one: it goes into the base template alone.
if command -v busybox >/dev/null 2>&1 && ldd "$(command -v busybox)" >/dev/null 2>&1; then want="$want busybox-static"; fi

# The kernel package is downloaded, not installed; that needs package lists.
lists_empty=yes
for f in /var/lib/apt/lists/*_Packages*; do [ -e "$f" ] && lists_empty=no; done

if [ -z "$want" ] && [ "$lists_empty" = no ]; then
	exit 0
fi
sudo=""
[ "$(id -u)" = 0 ] || sudo=sudo
if [ -n "$sudo" ] && ! command -v sudo >/dev/null 2>&1; then
	echo "deps: missing:$want; as root, run: apt-get update && apt-get install --no-install-recommends$want" >&2
	exit 1
fi
echo "deps: updating package lists" >&2
$sudo apt-get update -qq >&2
if [ -n "$want" ]; then
	echo "deps: installing$want" >&2
	# shellcheck disable=SC2086 # a list of words
	DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $want >&2
fi
