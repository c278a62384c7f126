package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestLogs: the message of each log line is a constant that begins in lower case, and its attributes have names that
// are constants too. What comes from outside is a value.
func TestLogs(t *testing.T) {
	t.Parallel()
	message, key := regexp.MustCompile(`^[a-z][a-zA-Z ,:]*$`), regexp.MustCompile(`^[a-z]+$`)
	files, lines := token.NewFileSet(), 0
	for _, name := range sources(t) {
		f, err := parser.ParseFile(files, root+name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || !logs(call) {
				return true
			}
			lines++
			for i, arg := range call.Args {
				pattern := message
				switch {
				case i > 0 && i%2 == 0:
					continue // a value
				case i > 0:
					pattern = key
				}
				if !pattern.MatchString(constant(arg)) {
					t.Errorf("%s: argument %d of the log line is not a constant like %s", files.Position(arg.Pos()), i+1, pattern)
				}
			}
			return true
		})
	}
	if lines < 20 {
		t.Errorf("%d log lines found: the test does not see them", lines)
	}
}

// logs reports whether a call logs with slog: a logger is a variable or field named log, and its methods are named like
// levels.
func logs(call *ast.CallExpr) bool {
	s, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || len(call.Args) == 0 || !slices.Contains([]string{"Debug", "Info", "Warn", "Error"}, s.Sel.Name) {
		return false
	}
	switch x := s.X.(type) {
	case *ast.Ident:
		return x.Name == "log"
	case *ast.SelectorExpr:
		return strings.EqualFold(x.Sel.Name, "log")
	}
	return false
}

// constant returns the value of a string literal, "" for anything else.
func constant(e ast.Expr) string {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	s, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return s
}
