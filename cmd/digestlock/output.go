package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/digestlock/digestlock/internal/cli"
	"github.com/digestlock/digestlock/internal/fault"
)

// stdout is the name of a file that is not one.
const stdout = "-"

// write puts manifests where --output says.
func write(env cli.Env, name string, data []byte) error {
	if name == stdout {
		if _, err := env.Stdout.Write(data); err != nil {
			return fault.New(fault.Output, "the reader of stdout went away, or its disk is full", "write manifests: %w", err)
		}
		return nil
	}
	if err := replace(name, data); err != nil {
		return fault.New(fault.Output, "give --output a file in a directory that this user may write", "write manifests: %w", err)
	}
	return nil
}

// replace writes a file as a whole: whoever reads it, whenever this process dies, finds the old bytes or the new ones.
// A link stays one, a file keeps its mode, and what is no file, such as /dev/stdout, is written to.
func replace(name string, data []byte) error {
	if target, err := filepath.EvalSymlinks(name); err == nil {
		name = target
	}
	old, err := os.Stat(name)
	if err == nil && !old.Mode().IsRegular() {
		return os.WriteFile(name, data, 0)
	}
	// Not os.CreateTemp, whose mode is not that which the umask gives.
	f, err := os.OpenFile(fmt.Sprintf("%s.%d.tmp", name, os.Getpid()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	if old != nil {
		err = f.Chmod(old.Mode().Perm())
	}
	if err == nil {
		_, err = f.Write(data)
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
