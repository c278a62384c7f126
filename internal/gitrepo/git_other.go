//go:build !unix

package gitrepo

import (
	"errors"
	"net"
	"os"
	"os/exec"
)

// killGroup leaves it at cmd itself where there are no process groups.
func killGroup(*exec.Cmd) {}

func socketpair() (*net.UnixConn, *os.File, error) {
	return nil, nil, errors.New("git over ssh needs a system with socket pairs")
}
