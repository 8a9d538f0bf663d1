package styx

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkDetect is what a start pays to know whether there is a network.
func BenchmarkDetect(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("an ordinary user makes no network devices")
	}
	for b.Loop() {
		if err := Detect(Config{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAttach is a card from nothing to a contract in force, and back, on
// a network that is up, in a namespace of the benchmark's own.
func BenchmarkAttach(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("an ordinary user makes no network devices")
	}
	for name, inside := range map[string]bool{"tap": false, "namespace": true} {
		b.Run(name, func(b *testing.B) {
			n, err := New(Config{Lock: filepath.Join(b.TempDir(), "lock")})
			if err != nil {
				b.Fatal(err)
			}
			err = inNewNamespace(func() error {
				w := Want{Contract: contractOf(tcp("198.51.100.0/24", 80, 443), tcp("0.0.0.0/0", 443)), Inside: inside}
				for b.Loop() {
					card, err := n.Attach(context.Background(), w)
					if err != nil {
						return err
					}
					b.StopTimer()
					if err := n.Detach(context.Background(), card.Name); err != nil {
						return err
					}
					if err := card.Close(); err != nil {
						return err
					}
					b.StartTimer()
				}
				return n.Close(context.Background())
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
