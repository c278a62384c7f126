package cli

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgress: nothing before a second is over, then what is going on, and nothing of it is left.
func TestProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var quick, slow strings.Builder
		p := newProgress("digestlock", &quick)
		p.Say("rendering")
		time.Sleep(patience - 1)
		p.Done()
		time.Sleep(time.Minute)
		p.Say("too late")
		if quick.String() != "" {
			t.Errorf("within a second: %q, want nothing", quick.String())
		}

		p = newProgress("digestlock", &slow)
		p.Say("rendering")
		time.Sleep(patience)
		synctest.Wait()
		p.Say("resolving")
		p.Done()
		p.Done()
		if want := "\r\x1b[Kdigestlock: rendering…\r\x1b[Kdigestlock: resolving…\r\x1b[K"; slow.String() != want {
			t.Errorf("after a second: %q, want %q", slow.String(), want)
		}
	})
}

// TestNoTerminal: what is no file is no terminal, whatever TERM says.
func TestNoTerminal(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	e := Env{Stderr: &b, Lookup: func(string) (string, bool) { return "xterm", true }}
	if e.Terminal(e.Stderr) || e.Colours(e.Stderr) {
		t.Error("a buffer is taken for a terminal")
	}
	synctest.Test(t, func(t *testing.T) {
		p := e.Progress("digestlock")
		p.Say("rendering")
		time.Sleep(time.Minute)
		p.Done()
	})
	if b.String() != "" {
		t.Errorf("printed %q", b.String())
	}
}
