package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"golang.org/x/term"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
)

// show prints one value: as JSON where that is wanted, else as lines of "name: value" in the order given.
func (g *globals) show(value any, fields ...field) error {
	if g.Output == "json" {
		return g.json(value)
	}
	w := tabwriter.NewWriter(g.Out, 0, 8, 2, ' ', 0)
	for _, f := range fields {
		if f.value != "" {
			fmt.Fprintf(w, "%s:\t%s\n", f.name, f.value)
		}
	}
	return w.Flush()
}

// field is a line of show.
type field struct{ name, value string }

func (g *globals) json(value any) error {
	e := json.NewEncoder(g.Out)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

// list prints a list as a table while it arrives, or as JSON, one value a line.
func list[T any](g *globals, items iter.Seq2[T, error], header string, row func(T) []string) error {
	if g.Output == "json" {
		e := json.NewEncoder(g.Out)
		for item, err := range items {
			if err != nil {
				return err
			}
			if err := e.Encode(item); err != nil {
				return err
			}
		}
		return nil
	}
	// A table needs all its rows to know its widths; a long list is written in parts, each with widths of its own.
	const part = 500
	w := tabwriter.NewWriter(g.Out, 0, 8, 2, ' ', 0)
	titles := func() { fmt.Fprintln(w, strings.Join(strings.Fields(header), "\t")) }
	n := 0
	for item, err := range items {
		if err != nil {
			_ = w.Flush()
			return err
		}
		if n == 0 { // not above an error: a table without rows says that there are none
			titles()
		}
		cells := row(item)
		for i, c := range cells {
			cells[i] = printable(c)
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
		if n++; n%part == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	if n == 0 {
		titles()
	}
	return w.Flush()
}

// printable keeps names that others chose from writing to the terminal what they like.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == '\u2028' || r == '\u2029' {
			return '?'
		}
		return r
	}, s)
}

// printableLines is printable for a text of several lines, such as an excerpt of a file. A line after the first is set off,
// so that it cannot pass for a message of its own.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = printable(strings.ReplaceAll(line, "\t", " "))
	}
	return strings.Join(lines, "\n    ")
}

// day prints a time as an operator reads it in a table.
func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04")
}

// stamp prints a time exactly.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// say prints talk for a person to standard error.
func (g *globals) say(format string, args ...any) {
	fmt.Fprintf(g.Err, format+"\n", args...)
}

// write puts what a command made into a file that must not exist yet, or on standard output when the name is empty or -.
func (g *globals) write(file string, content []byte, mode os.FileMode) error {
	if file == "" || file == "-" {
		_, err := g.Out.Write(content)
		return err
	}
	return keyfile.WriteFile(file, content, mode)
}

// absent refuses an output file that exists already, or has no directory to be in, before anything is done at the node
// whose outcome it is to hold.
func absent(file string) error {
	if file == "" || file == "-" {
		return nil
	}
	if _, err := os.Stat(filepath.Dir(file)); err != nil {
		return err
	}
	if _, err := os.Lstat(file); err == nil {
		return fault.New(fault.Conflict, "%s exists and is not overwritten", file).WithHint("choose another name, or move %s away", file)
	}
	return nil
}

// progress shows a line that changes on a terminal, and nothing elsewhere. The returned function ends it.
func (g *globals) progress(what string) func() {
	return g.progressing(func() string { return what })
}

// progressing is progress whose text changes.
func (g *globals) progressing(what func() string) func() {
	f, ok := g.Err.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func() {}
	}
	start, done, ended := time.Now(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		shown := false
		for {
			select {
			case <-done:
				if shown {
					fmt.Fprint(f, "\r\x1b[K")
				}
				return
			case <-tick.C:
				if age := time.Since(start); age > 2*time.Second {
					fmt.Fprintf(f, "\r\x1b[K%s … %s", what(), age.Round(time.Second))
					shown = true
				}
			}
		}
	}()
	return func() { close(done); <-ended }
}

// readAll reads a small input file that holds no secret, or standard input when the name is -. It may be a pipe, and is waited
// for no longer than the command runs.
func (g *globals) readAll(file string) ([]byte, error) {
	text, err := interruptible(g.ctx, func() ([]byte, error) {
		if file == "-" {
			return bounded(g.In, maxInput)
		}
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return bounded(f, maxInput)
	})
	if errors.Is(err, errEndless) {
		return nil, fault.New(fault.TooLarge, "%s has more than %d octets", file, maxInput)
	}
	return text, err
}

// maxInput bounds what a command reads into memory.
const maxInput = 64 << 20
