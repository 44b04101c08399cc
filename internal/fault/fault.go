// Package fault says why a request was refused.
//
// A refusal that is meant for the caller is an *Error with a Kind; every other error is internal, and a surface shows it
// as "internal error" with a request ID. Each surface has one map from Kind to its wire form, and a test that ranges over
// Kinds, so a new Kind cannot be forgotten.
package fault

import (
	"errors"
	"fmt"
)

// Kind classifies a refusal. It is a string so that it has no second table to drift; it is also the metric label.
type Kind string

// The kinds of refusal.
const (
	Invalid         Kind = "invalid"         // the input breaks a rule; the same input will never pass
	Unauthenticated Kind = "unauthenticated" // the caller did not prove who it is
	Denied          Kind = "denied"          // the caller is known and may not do this
	NotFound        Kind = "not-found"       // no such object, or the caller may not know of it
	Conflict        Kind = "conflict"        // the state forbids it now: a name is taken, a certificate is revoked already
	TooLarge        Kind = "too-large"       // the input is over a stated limit
	RateLimited     Kind = "rate-limited"    // the caller asks too often; it may ask again later
	Unavailable     Kind = "unavailable"     // the node cannot do it now: read-only, clock set back, database away
	Internal        Kind = "internal"        // not a refusal: something broke here
)

// Kinds lists every Kind, for tests of the surfaces' maps.
var Kinds = []Kind{Invalid, Unauthenticated, Denied, NotFound, Conflict, TooLarge, RateLimited, Unavailable, Internal}

// Error is a refusal: the rule that was broken, the value that broke it, and what would pass.
type Error struct {
	Kind    Kind
	Message string // names the rule and the value, and what would pass
	Hint    string // the operator's next command, if there is one
	Pointer string // where in the input, as a JSON pointer, a line:column or a field's name; may be empty
	Err     error  // the cause, for errors.Is; never shown to the caller
}

// New returns a refusal whose message is formatted as by fmt.Errorf; a %w verb sets the cause.
func New(kind Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: err.Error(), Err: errors.Unwrap(err)}
}

// WithHint returns a copy of e that carries the operator's next command.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// At returns a copy of e that says where in the input the fault is.
func (e *Error) At(pointer string) *Error {
	c := *e
	c.Pointer = pointer
	return &c
}

func (e *Error) Error() string { return e.Message }

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the Kind of the first *Error in err's chain, and Internal where there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is a refusal of the given kind.
func Is(err error, kind Kind) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Kind == kind
}
