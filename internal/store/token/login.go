package token

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/token/wire"
)

// maxUnknown is how many logins in a row may end without anybody knowing how, with a PIN that was not seen to be right.
const maxUnknown = 5

// attempt asks a helper to open a key, and learns from the answer. why says what is wrong with the token.
//
// It looks for the token first, without a PIN: a library that hangs while it is initialised, or while it reaches for its module, has
// counted none, and the node may go on asking it for as long as that takes.
func (t *Tokens) attempt(ctx context.Context, r *reach, l *library, h *helper, u *URI) (key *wire.Key, why string, err error) {
	if r.opening.take(ctx) != nil {
		return nil, "it is being looked for, and did not answer yet", nil
	}
	defer r.opening.give()
	if why := r.resting(time.Now()); why != "" { // the one before us was in vain
		return nil, why, nil
	}
	code, text, err := h.look(ctx, u.selector())
	if err == nil && code == wire.OK {
		code, text, key, err = t.login(ctx, r, h, u)
	}
	if untried, ok := errors.AsType[untried](err); ok {
		return nil, string(untried), nil
	}
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.restFor(shortRest, fmt.Sprintf("it did not answer within %s", t.answer))
		}
		if errors.Is(err, errLost) {
			l.drop(h)
		}
		return nil, "", err
	}
	if code == wire.OK {
		r.missing = false
		return key, "", nil
	}
	return t.refused(r, l, h, code, text)
}

// untried says why no PIN was tried, though the file has one.
type untried string

func (u untried) Error() string { return string(u) }

// login opens the key with the PIN of the place, and remembers what the token said of that PIN.
func (t *Tokens) login(ctx context.Context, r *reach, h *helper, u *URI) (code wire.Code, text string, key *wire.Key, err error) {
	if r.PINFile != "" {
		giveBack, err := t.refusals().alone(ctx)
		if err != nil {
			return 0, "", nil, err
		}
		defer giveBack()
	}
	pin, err := t.pin(r)
	if err != nil {
		return 0, "", nil, err
	}
	if r.unknown >= maxUnknown && !r.accepted.is(pin) {
		return 0, "", nil, untried(fmt.Sprintf("the helper was lost %d times while it logged in to it; as each may have counted as a wrong PIN, it is "+
			"not tried again before the node is started anew", r.unknown))
	}
	asked := u.selector()
	asked.Careful = r.unknown > 0
	r.unknown++
	if code, text, key, err = h.open(ctx, asked, pin); err != nil {
		return 0, "", nil, err
	}
	r.unknown = 0
	note := func(refused string) {
		r.refused = refused
		if err := t.refusals().note(r.name, refused); err != nil {
			t.logger.Error("what a token said of a PIN is remembered until the node ends only", "error", err)
		}
	}
	switch code {
	case wire.OK:
		r.accepted = sumOf(pin)
		note("")
	case wire.PIN:
		r.accepted = pinSum{}
		note(pin)
	}
	return code, text, key, nil
}

// refused says what an answer that is not OK means, and lets a token that is away rest.
func (t *Tokens) refused(r *reach, l *library, h *helper, code wire.Code, text string) (key *wire.Key, why string, err error) {
	if code != wire.Absent && code != wire.Gone {
		r.missing = false
	}
	switch code {
	case wire.Object, wire.Unable, wire.Refused:
		return nil, "", fault.New(fault.Invalid, "the token %s on node %s: %s", r, t.node, text)
	case wire.PIN:
		return nil, fmt.Sprintf("%s; the one in %s is not tried again", text, r.PINFile), nil
	case wire.Absent, wire.Gone:
		// A library that is loaded anew sees what has come since, so the first time it is looked once more.
		l.works(h)
		others := h.found.Load() > 0
		l.drop(h)
		if !r.missing {
			r.missing = true
			return nil, "", fmt.Errorf("%w: %s", errLost, text)
		}
		pause := shortRest
		if others {
			pause = longRest
		}
		r.restFor(pause, text)
		return nil, text, nil
	}
	r.restFor(shortRest, text)
	return nil, text, nil
}

// pin returns the PIN of a place, unless the token refused it already. The caller has the turn to open, and is alone.
func (t *Tokens) pin(r *reach) (string, error) {
	pin, err := readPIN(r.PINFile)
	if err != nil || pin == "" {
		return "", err
	}
	if r.refused == pin || t.refusals().load()[r.name].is(pin) {
		r.refused = pin
		return "", fault.New(fault.Unavailable, "the token %s refused the PIN in %s, which is not tried again, since a few wrong ones lock it", r, r.PINFile).
			WithHint("write the right PIN into %s: it is read anew by the next call", r.PINFile)
	}
	return pin, nil
}
