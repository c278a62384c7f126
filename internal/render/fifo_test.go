//go:build unix

package render

import (
	"path/filepath"
	"syscall"
	"testing"
)

// TestFIFO: a named pipe is refused, where reading it would wait for ever.
func TestFIFO(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "KUST", "resources: [fifo]")
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, usual, "fifo: not a regular file")
}
