package main

import (
	"os/exec"
	"testing"
)

func TestUserProcess(t *testing.T) {
	t.Parallel()
	for stat, want := range map[string]string{
		"7 (sh) S 1 7 7":              "sh",
		"8 (a) b (c) S 7 8":           "a) b (c",
		"9 () R 1":                    "",
		"2 (kthreadd) S 0 0":          "-",
		"30 (kworker/0:1) I 2 0":      "-",
		"x (sh) S 1":                  "-",
		"7 sh S 1":                    "-",
		"":                            "-",
		"7 (sh":                       "-",
		"7 (sh) S":                    "-",
		"7 (sh) S x":                  "-",
		") 7 (":                       "-",
		"11 (kthreadd) S 1 11 11 0 0": "kthreadd",
	} {
		name, ok := userProcess(stat)
		if ok != (want != "-") || ok && name != want {
			t.Errorf("%q: %q, %v", stat, name, ok)
		}
	}
}

func TestEnded(t *testing.T) {
	t.Parallel()
	for script, want := range map[string]int{"exit 0": 0, "exit 3": 3, "kill -9 $$": 137} {
		c := exec.Command("sh", "-c", script)
		if got := ended(c.Run(), c.ProcessState); got.Status != want || got.Error != "" {
			t.Errorf("%s: %+v", script, got)
		}
	}
	c := exec.Command("/no/such/program")
	if got := ended(c.Run(), c.ProcessState); got.Status != 127 || got.Error == "" {
		t.Errorf("no program: %+v", got)
	}
}
