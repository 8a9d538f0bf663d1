package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tartarus-vm/tartarus/internal/node/nyx/guestbundle"
)

// modules are what the lab's kernel loads at its start, with all that they
// depend on: for its own disk and port, and what the tests in it need. There
// is no modprobe in the lab, so what is not here cannot be had.
var modules = []string{
	"virtio_pci", "virtio_blk", "virtio_console", "virtio_rng",
	"kvm_amd", "tun", "bridge", "veth", "loop", "overlay",
	"nf_tables", "nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_meta_bridge", "nft_fib_ipv4", "nft_reject_ipv4", "nft_limit", "nf_conntrack_netlink",
}

// kernel is what the lab boots: files in the cache.
type kernel struct {
	image    string
	modules  []guestbundle.Module
	MadeFrom string
	Release  string
	Names    []string // of the modules, in their order
}

// getKernel takes the kernel from the cache, or downloads it. A list of other
// modules is another entry.
func getKernel(ctx context.Context, cache string, say func(string, ...any)) (*kernel, error) {
	sum := sha256.Sum256([]byte(strings.Join(modules, " ")))
	dir := filepath.Join(cache, "kernel-"+hex.EncodeToString(sum[:6]))
	if k, err := loadKernel(dir); err == nil {
		return k, nil
	}
	parts, err := guestbundle.FetchParts(ctx, guestbundle.Config{
		CacheDir: cache,
		Progress: func() func(string, int64, int64) {
			said := ""
			return func(step string, _, _ int64) {
				if step != said {
					say("%s", step)
				}
				said = step
			}
		}(),
	}, modules)
	if err != nil {
		return nil, err
	}
	if err := saveKernel(dir, parts); err != nil {
		return nil, fmt.Errorf("caching the kernel: %w", err)
	}
	return loadKernel(dir)
}

// saveKernel puts the kernel into the cache, as a whole or not at all.
func saveKernel(dir string, p guestbundle.Parts) error {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "making-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	k := kernel{MadeFrom: p.MadeFrom, Release: p.Release}
	files := map[string][]byte{"vmlinuz": p.Image}
	for _, m := range p.Modules {
		k.Names = append(k.Names, m.Name)
		files[m.Name+".ko"] = m.Data
	}
	if files["kernel.json"], err = json.Marshal(k); err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(tmp, name), data, 0o600); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

func loadKernel(dir string) (*kernel, error) {
	text, err := os.ReadFile(filepath.Join(dir, "kernel.json"))
	if err != nil {
		return nil, err
	}
	k := &kernel{image: filepath.Join(dir, "vmlinuz")}
	if err := json.Unmarshal(text, k); err != nil {
		return nil, err
	}
	if _, err := os.Stat(k.image); err != nil {
		return nil, err
	}
	for _, name := range k.Names {
		data, err := os.ReadFile(filepath.Join(dir, filepath.Base(name)+".ko"))
		if err != nil {
			return nil, err
		}
		k.modules = append(k.modules, guestbundle.Module{Name: name, Data: data})
	}
	return k, nil
}
