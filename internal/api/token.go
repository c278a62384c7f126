package api

import (
	"fmt"
	"os"
	"strings"
)

// Tokens reads a token file: one token a line, at least one. Empty lines and lines that begin with # do not count.
func Tokens(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var tokens []string
	for i, line := range strings.Split(string(data), "\n") {
		token := strings.TrimSpace(line)
		if token == "" || strings.HasPrefix(token, "#") {
			continue
		}
		if len(strings.Fields(token)) > 1 {
			return nil, fmt.Errorf("%s:%d: a token with a blank in it", file, i+1)
		}
		tokens = append(tokens, token)
	}
	if len(tokens) == 0 {
		return nil, fmt.Errorf("%s holds no token", file)
	}
	return tokens, nil
}

// Token returns the first token of a token file, the one that a client sends; "" without a file.
func Token(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	tokens, err := Tokens(file)
	if err != nil {
		return "", err
	}
	return tokens[0], nil
}
