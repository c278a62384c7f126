// Package lazy has regular expressions that are compiled when they are first used. Each render is a process of its own, which
// would compile all those of the program before its first line.
package lazy

import (
	"regexp"
	"sync"
)

// Regexp returns a function that returns the compiled expr, for package-level variables. It may be called by several
// goroutines at once, and panics as [regexp.MustCompile] does when expr is none.
func Regexp(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
