package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// systemd reads a configuration of one of systemd's programs as systemd.syntax(7) has it: sections in brackets, KEY=VALUE, a
// backslash at the end of a line that goes on, and comments with # or ; at the beginning of a line. A setting is known by its
// key: a file of this kind has one section. What comes later counts, and an empty value takes a setting back. Drop-ins in
// FILE.d, in the order of their names, come after the file. Those below /usr and /run are not read.
func (r *configReader) systemd(path string, text []byte) error {
	section := false
	for n, line := range joinedLines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
			continue
		case line[0] == '[' && line[len(line)-1] == ']':
			section = true
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if key = strings.TrimSpace(key); !ok || key == "" || !section {
			return fmt.Errorf("%s, setting %d: KEY=VALUE in a section was expected", path, n+1)
		}
		if value = strings.TrimSpace(value); value == "" {
			delete(r.out, key)
			continue
		}
		r.set(key, value, false)
	}
	return nil
}

// dropIns reads the files that stand beside one of systemd's.
func (r *configReader) dropIns(path string) error {
	entries, err := os.ReadDir(r.sys.Path(path + ".d")) // by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".conf") {
			if err := r.file(filepath.Join(path+".d", e.Name()), r.systemd); err != nil {
				return err
			}
		}
	}
	return nil
}

// joinedLines are the lines of a text, with those that end in a backslash joined to the next by a blank. A comment among them
// does not end them.
func joinedLines(text string) []string {
	var all []string
	open := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if start := strings.TrimSpace(line); open && start != "" && (start[0] == '#' || start[0] == ';') {
			continue
		}
		more := strings.HasSuffix(line, "\\")
		line = strings.TrimSuffix(line, "\\")
		if open {
			all[len(all)-1] += " " + line
		} else {
			all = append(all, line)
		}
		open = more
	}
	return all
}
