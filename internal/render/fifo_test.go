//go:build unix

package render

import (
	"os"
	"syscall"
	"testing"
)

// fifo makes a file whose reader waits until release is called.
func fifo(t *testing.T, name string) (release func()) {
	t.Helper()
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
