package datadir

import (
	"bytes"
	"fmt"
	"os"
	"regexp"

	"chancery/internal/fault"
	"chancery/internal/pki/keyfile"
	"github.com/goccy/go-yaml"
)

// emptyDatabaseFile is the line that says what a missing one says too.
var emptyDatabaseFile = regexp.MustCompile(`(?m)^database_file:[ \t]*(""|''|~|null)?[ \t]*(#.*)?\r?\n?`)

// SetDatabaseFile has node.yaml name the file that holds the database's URL, where it named none. The file is replaced in one
// step, and all else in it stays as its owner wrote it, comments too.
func (d Dir) SetDatabaseFile(file string) error {
	text, err := keyfile.ReadFile(d.Config(), maxConfig)
	if err != nil {
		return fmt.Errorf("read node configuration: %w", err)
	}
	before, err := Parse(text)
	if err != nil {
		return err
	}
	if before.DatabaseFile != "" {
		return fault.New(fault.Conflict, "%s names %s as its database's file already", d.Config(), before.DatabaseFile)
	}
	line, err := yaml.Marshal(map[string]string{"database_file": file})
	if err != nil {
		return fmt.Errorf("encode node configuration: %w", err)
	}
	text = bytes.TrimRight(emptyDatabaseFile.ReplaceAll(text, nil), "\n")
	text = append(append(text, '\n'), line...)
	after, err := Parse(text)
	if err != nil {
		return fmt.Errorf("add database_file to %s: %w", d.Config(), err)
	}
	if after.DatabaseFile != file || after.Name != before.Name || after.Address != before.Address || after.Listen != before.Listen {
		return fault.New(fault.Invalid, "%s is written in a form to which no line can be added", d.Config()).
			WithHint("add this line by hand: %s", bytes.TrimSpace(line))
	}
	stat, err := os.Stat(d.Config())
	if err != nil {
		return err
	}
	if err := keyfile.ReplaceBeside(d.Config(), text, stat.Mode().Perm()); err != nil {
		return fmt.Errorf("write node configuration: %w", err)
	}
	return nil
}

// nameLine is the line of the node's name.
var nameLine = regexp.MustCompile(`(?m)^name:[^\r\n]*`)

// SetName gives the data directory's node another name: the old one's key is lost, and its audit chain goes no further. All else
// in node.yaml stays.
func (d Dir) SetName(name string) error {
	text, err := os.ReadFile(d.Config())
	if err != nil {
		return fmt.Errorf("read node configuration: %w", err)
	}
	text = nameLine.ReplaceAll(text, []byte("name: "+name))
	if after, err := Parse(text); err != nil {
		return fmt.Errorf("name the node %s in %s: %w", name, d.Config(), err)
	} else if after.Name != name {
		return fault.New(fault.Invalid, "%s is written in a form whose name cannot be changed", d.Config()).WithHint("write name: %s there by hand", name)
	}
	stat, err := os.Stat(d.Config())
	if err != nil {
		return err
	}
	if err := keyfile.ReplaceBeside(d.Config(), text, stat.Mode().Perm()); err != nil {
		return fmt.Errorf("write node configuration: %w", err)
	}
	return nil
}
