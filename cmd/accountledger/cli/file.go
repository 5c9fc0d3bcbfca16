package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// NewFilePrefix starts the name of a file or directory that is incomplete. A
// crash may leave one behind; it can be removed.
const NewFilePrefix = ".new-"

// CreateFile creates a file with this text, durably and completely or not at
// all. It fails if the file exists, and leaves it as it is: it may be a key in
// use.
func CreateFile(path, text string, mode fs.FileMode) error {
	return WriteFile(path, mode, os.Link, func(f *os.File) error {
		_, err := f.WriteString(text)
		return err
	})
}

// WriteFile calls write to fill a temporary file. When that is durable, it
// calls name, os.Link or os.Rename, to give the file its name.
func WriteFile(path string, mode fs.FileMode, name func(from, to string) error, write func(*os.File) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, NewFilePrefix+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after a rename, which is fine
	defer f.Close()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := write(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := name(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes the names of the files in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// ReadTrimmed reads a small file that holds one line.
func ReadTrimmed(path string) (string, error) {
	data, err := os.ReadFile(path)
	return strings.TrimSpace(string(data)), err
}
