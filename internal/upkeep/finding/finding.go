// Package finding is what doctor and verify say: something that was looked at, and whether it is as it should be.
package finding

import "iter"

// Level says how bad a finding is.
type Level string

// The levels. An OK is a finding too, so that "nothing wrong" can be told from "nothing looked at".
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Error   Level = "error"
)

// Finding is one thing that was looked at.
type Finding struct {
	Level   Level
	Check   string // what was looked at, such as keys.wraps
	Object  string // of which the finding speaks; may be empty
	Message string // the rule and the value seen
	Seen    string // the value by itself, where it can be told apart
	Do      string // what to do about it, where more is to be said than a command
	Hint    string // the command that mends it
}

// Seq yields findings as they are made. An error means that the looking itself failed.
type Seq = iter.Seq2[Finding, error]

// Of yields findings that are there already.
func Of(found []Finding) Seq {
	return func(yield func(Finding, error) bool) {
		for _, f := range found {
			if !yield(f, nil) {
				return
			}
		}
	}
}

// Look is one thing to look at. It tells what it finds, and returns an error when it could not look.
type Look func(tell func(Finding)) error

// Run runs looks in their order. A look that fails is told as an error finding of that name, and the others go on: one
// broken part must not hide the state of the rest.
func Run(looks map[string]Look, order ...string) Seq {
	return func(yield func(Finding, error) bool) {
		for _, name := range order {
			stopped := false
			tell := func(f Finding) {
				if stopped {
					return
				}
				if f.Check == "" {
					f.Check = name
				}
				stopped = !yield(f, nil)
			}
			if err := looks[name](tell); err != nil {
				tell(Finding{Level: Error, Message: "could not look: " + err.Error()})
			}
			if stopped {
				return
			}
		}
	}
}
