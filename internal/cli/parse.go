package cli

import (
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	apiv1 "github.com/tartarus-vm/tartarus/api/v1"
)

// units are the suffixes of sizes, in bytes. Without one a size is in MiB.
var units = []struct {
	suffix string
	bytes  float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"k", 1 << 10}, {"m", 1 << 20}, {"g", 1 << 30}, {"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30},
}

// parseMiB reads a size such as 256MiB, 1GiB, 512m or 256 (MiB), rounded up to
// whole MiB.
func parseMiB(s string) (int32, error) {
	number, factor := s, float64(1<<20)
	for _, u := range units {
		if n, ok := strings.CutSuffix(s, u.suffix); ok {
			number, factor = n, u.bytes
			break
		}
	}
	number = strings.TrimSpace(number)
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || f <= 0 || strings.Trim(number, "0123456789.") != "" {
		return 0, fmt.Errorf("%q is not a size; write it as 256MiB or 1GiB", s)
	}
	mib := math.Ceil(f * factor / (1 << 20))
	if mib > math.MaxInt32 {
		return 0, fmt.Errorf("%q is too large", s)
	}
	return int32(mib), nil
}

// parseEnv reads K=V, or K alone for the value it has in this environment.
func parseEnv(args []string, lookup func(string) (string, bool)) (map[string]string, error) {
	env := map[string]string{}
	for _, a := range args {
		k, v, given := strings.Cut(a, "=")
		if k == "" {
			return nil, fmt.Errorf("--env %q has no name", a)
		}
		if !given {
			have, ok := lookup(k)
			if !ok {
				continue // as docker run -e does
			}
			v = have
		}
		env[k] = v
	}
	return env, nil
}

func parseLabels(flag string, args []string) (map[string]string, error) {
	m := map[string]string{}
	for _, a := range args {
		k, v, ok := strings.Cut(a, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("--%s %q: write it as key=value", flag, a)
		}
		m[k] = v
	}
	return m, nil
}

// maxFile bounds what --file reads; a server takes less.
const maxFile = 64 << 20

// parseFiles reads LOCAL:GUEST and the local files.
func parseFiles(args []string) ([]*apiv1.File, error) {
	var files []*apiv1.File
	for _, a := range args {
		local, guest, ok := strings.Cut(a, ":/")
		if !ok || local == "" {
			return nil, fmt.Errorf("--file %q: write it as LOCAL:/PATH/IN/THE/SANDBOX", a)
		}
		f, err := readFile(local)
		if err != nil {
			return nil, fmt.Errorf("--file: %w", err)
		}
		f.Path = "/" + guest
		files = append(files, f)
	}
	return files, nil
}

func readFile(name string) (*apiv1.File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return nil, fmt.Errorf("%s is a folder; name each file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d MiB", name, maxFile>>20)
	}
	return &apiv1.File{Mode: uint32(st.Mode().Perm()), Data: data}, nil
}

// parseAllow reads HOST:PORT[,PORT…] where HOST is a domain, an address or a
// CIDR, with an optional /udp or /tcp behind.
func parseAllow(args []string) ([]*apiv1.Grant, error) {
	var grants []*apiv1.Grant
	for _, a := range args {
		g, err := parseGrant(a)
		if err != nil {
			return nil, fmt.Errorf("--allow %q: %w; write it as api.example.com:443 or 203.0.113.0/24:5432", a, err)
		}
		grants = append(grants, g)
	}
	return grants, nil
}

func parseGrant(s string) (*apiv1.Grant, error) {
	g := &apiv1.Grant{}
	for _, proto := range []string{"tcp", "udp"} {
		if rest, ok := strings.CutSuffix(s, "/"+proto); ok {
			s, g.Protocol = rest, proto
		}
	}
	i := strings.LastIndex(s, ":")
	if i <= 0 {
		return nil, fmt.Errorf("it has no port")
	}
	host := s[:i]
	for p := range strings.SplitSeq(s[i+1:], ",") {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is not a port", p)
		}
		g.Ports = append(g.Ports, int32(n))
	}
	if inner, ok := strings.CutPrefix(host, "["); ok && strings.HasSuffix(inner, "]") {
		host = strings.TrimSuffix(inner, "]")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		g.Cidr = netip.PrefixFrom(addr, addr.BitLen()).String()
		return g, nil
	}
	if _, _, err := net.ParseCIDR(host); err == nil {
		g.Cidr = host
		return g, nil
	}
	if strings.ContainsAny(host, "/:[]") {
		return nil, fmt.Errorf("%q is neither a name, an address nor a CIDR", host)
	}
	g.Domain = strings.ToLower(host)
	return g, nil
}
