package themis

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tartarus-vm/tartarus/internal/fault"
)

// policyName is the policy's name in a folder that holds other files too.
const policyName = "policy.yaml"

// maxFolderEntries bounds how many files of a folder are looked at.
const maxFolderEntries = 1000

// errMoving says that the file changed while it was read.
var errMoving = fault.New(fault.Unavailable, "the policy file is being written").
	WithHint("replace it in one step: write another file beside it, and rename that")

// Load reads the policy at path: a file, or a folder with policy.yaml or one
// other *.yaml in it; the built-in policy when path is "". file says which one
// it was. No symbolic link is followed out of the folder. (Within it they are
// how a mounted ConfigMap changes in one step.)
func Load(path string) (p *Policy, file string, err error) {
	if path == "" {
		p, err = Default()
		return p, "", err
	}
	text, file, err := read(path)
	if err != nil {
		return nil, file, err
	}
	if p, err = Parse(text); err != nil {
		return nil, file, fmt.Errorf("%s: %w", file, err)
	}
	return p, file, nil
}

// read returns the text of the policy at path, and the file that it is in.
func read(path string) (text []byte, file string, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, path, unreadable(path, err)
	}
	folder, name := filepath.Dir(path), filepath.Base(path)
	if st.IsDir() {
		folder, name = path, ""
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return nil, path, unreadable(path, err)
	}
	defer root.Close()
	if name == "" {
		if name, err = choose(root, path); err != nil {
			return nil, path, err
		}
	}
	file = filepath.Join(folder, name)
	text, err = readIn(root, name)
	if err != nil {
		return nil, file, unreadable(file, err)
	}
	return text, file, nil
}

func unreadable(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "there is no policy file %s", path).
			WithHint("give the path of a policy file or of a folder with one, or none for the built-in policy")
	case fault.Is(err, fault.Unavailable):
		return err
	}
	return fault.New(fault.InvalidArgument, "the policy %s cannot be read: %v", path, err).
		WithHint("it must be a plain file; a symbolic link may not lead out of its folder")
}

// choose finds the policy in a folder.
func choose(root *os.Root, path string) (string, error) {
	dir, err := root.Open(".")
	if err != nil {
		return "", unreadable(path, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxFolderEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", unreadable(path, err)
	}
	var found []string
	for _, name := range names {
		if name == policyName {
			return name, nil
		}
		if strings.HasSuffix(name, ".yaml") && !strings.HasPrefix(name, ".") {
			found = append(found, name)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fault.New(fault.NotFound, "there is no policy in the folder %s", path).WithHint("put it there as %s", policyName)
	}
	return "", fault.New(fault.InvalidArgument, "the folder %s has %d files *.yaml, and none is %s", path, len(found), policyName).
		WithHint("name the policy %s, or give its own path", policyName)
}

// readIn reads a plain file whole, or not at all.
func readIn(root *os.Root, name string) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe would wait for its writer
	if err != nil {
		return nil, err
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, errors.New("it is no plain file")
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxPolicyBytes+1)) // Parse refuses the byte too many
	if err != nil {
		return nil, err
	}
	after, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) || after.Size() != int64(len(text)) && len(text) <= MaxPolicyBytes {
		return nil, errMoving
	}
	return text, nil
}
