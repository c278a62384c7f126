package cli

import (
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

// Terminal reports whether people look at w, through something that understands escapes.
func (e Env) Terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	name := e.Getenv("TERM")
	return ok && name != "" && name != "dumb" && term.IsTerminal(int(f.Fd()))
}

// Colours reports whether text on w may have colours. https://no-color.org
func (e Env) Colours(w io.Writer) bool { return e.Getenv("NO_COLOR") == "" && e.Terminal(w) }

// Colour is a colour of a terminal.
type Colour string

// The colours, which each terminal shows in its own palette.
const (
	Red    Colour = "31"
	Green  Colour = "32"
	Yellow Colour = "33"
	Cyan   Colour = "36"
)

// Paint returns text in the colour, "" for none.
func (c Colour) Paint(text string) string {
	if c == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// paint colours the first word of an error and of its hint.
func paint(program, text string) string {
	text = strings.Replace(text, program+": error:", program+": "+Red.Paint("error:"), 1)
	return strings.Replace(text, "\n"+program+": hint:", "\n"+program+": "+Cyan.Paint("hint:"), 1)
}

// patience is how long a command may be busy without a word.
const patience = time.Second

// Progress is a line on a terminal's stderr that says what a command is busy with, once that takes longer than a
// second. Where stderr is no terminal, it is nothing. It is safe for concurrent use.
type Progress struct {
	program string
	w       io.Writer // nil when nobody is there to see

	mu    sync.Mutex
	text  string
	shown bool
	timer *time.Timer
}

// Progress starts a line for program. Call Done before anything else is printed.
func (e Env) Progress(program string) *Progress {
	if !e.Terminal(e.Stderr) {
		return &Progress{}
	}
	return newProgress(program, e.Stderr)
}

func newProgress(program string, w io.Writer) *Progress {
	p := &Progress{program: program, w: w}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(patience, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.w != nil {
			p.shown = true
			p.draw()
		}
	})
	return p
}

// Say changes what the line says.
func (p *Progress) Say(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = text
	if p.shown {
		p.draw()
	}
}

// Done removes the line. It may be called again.
func (p *Progress) Done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.shown {
		_, _ = io.WriteString(p.w, clearLine)
	}
	p.shown, p.w = false, nil
}

const clearLine = "\r\x1b[K"

// draw writes the line. The caller holds mu.
func (p *Progress) draw() { _, _ = io.WriteString(p.w, clearLine+p.program+": "+p.text+"…") }
