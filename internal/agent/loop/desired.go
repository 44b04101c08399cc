package loop

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"chancery/internal/pki/checkpoint"
)

// lastDesired is what the host was last told to hold; nil where it never was. One that cannot be read is an *unreadable.
func (s *State) lastDesired() (*client.Desired, error) {
	var d client.Desired
	found, err := s.readJSON(&d, fileDesired)
	if err != nil || !found {
		return nil, err
	}
	if d.Host == "" {
		return nil, &unreadable{path: s.path(fileDesired), err: errors.New("it names no host")}
	}
	return &d, nil
}

// lastKnown is the last desired state. One that cannot be read counts as one that is not there, for the authority has it
// still; the problem says so.
func (a *Agent) lastKnown() (d *client.Desired, problem string, err error) {
	d, err = a.state.lastDesired()
	broken, is := errors.AsType[*unreadable](err)
	if !is {
		return d, "", err
	}
	kept, err := a.state.putAway(fileDesired)
	if err != nil {
		return nil, "", errors.Join(broken, err)
	}
	a.log.Error("the last desired state cannot be read, and is asked for anew", "error", broken, "kept", kept)
	return nil, fmt.Sprintf("the last desired state could not be read (%v), was set aside as %s, and is asked for anew", broken, kept), nil
}

// takeDesired keeps a desired state that came from the authority, and the audit checkpoint that came with it. What it says
// of the host must be of this host, and parse: a state that is of no use does not take the place of one that is.
func (a *Agent) takeDesired(d *client.Desired) (problem string, err error) {
	if host := a.Host(); d.Host != host {
		return "", fmt.Errorf("the authority sent the desired state of %q, and this host is %q", d.Host, host)
	}
	if _, err := parseTrusts(d); err != nil {
		return "", err
	}
	problem, err = a.takeCheckpoint(d.Checkpoint)
	if err != nil {
		return problem, err
	}
	kept := *d
	kept.Checkpoint = "" // it has a file of its own
	return problem, a.state.writeJSON(kept, fileDesired)
}

// takeCheckpoint keeps the newest audit checkpoint. One that is older than the one that is kept, or contradicts it, is not
// taken, and is reported: the record of the authority was set back or rewritten.
func (a *Agent) takeCheckpoint(text string) (problem string, err error) {
	if text == "" {
		return "", nil
	}
	keys, err := a.state.auditKeys()
	if err != nil || len(keys) == 0 {
		return "", err
	}
	offered, err := checkpoint.Parse([]byte(text))
	if err == nil {
		err = offered.Verify(keys...)
	}
	if err != nil {
		return fmt.Sprintf("the audit checkpoint that the authority sent is not taken: %v", err), nil
	}
	kept, err := a.state.read(fileCheckpoint)
	if err != nil {
		return "", err
	}
	if string(kept) == text {
		return "", nil
	}
	if kept != nil {
		before, err := checkpoint.Parse(kept)
		if err != nil {
			aside, wrong := a.state.putAway(fileCheckpoint)
			if wrong != nil {
				return "", errors.Join(fmt.Errorf("read the kept audit checkpoint: %w", err), wrong)
			}
			problem = fmt.Sprintf("the kept audit checkpoint could not be read (%v) and was set aside as %s, so that checkpoint %d could not be held against it",
				err, aside, offered.Number)
		} else if err := offered.CheckSuccessor(before); err != nil {
			return fmt.Sprintf("the audit went back: this host has seen checkpoint %d, and was sent checkpoint %d: %v", before.Number, offered.Number, err), nil
		}
	}
	return problem, a.state.write([]byte(text), fileCheckpoint)
}

// fetch asks the authority what the host shall hold, without waiting; where that fails, it is what was last known.
func (a *Agent) fetch(ctx context.Context) (*client.Desired, []string, error) {
	if a.api == nil {
		return nil, nil, fault.New(fault.Conflict, "this host has not joined").
			WithHint("chancery agent join --token-file F --state %s", a.state.dir)
	}
	last, lost, err := a.lastKnown()
	if err != nil {
		return nil, nil, err
	}
	etag := ""
	if last != nil {
		etag = last.ETag
	}
	fresh, err := a.api.Desired(ctx, etag, 0)
	a.setGone(err)
	if err != nil {
		message := "the authority is not reached, so what was last known holds: " + err.Error() + a.clockAdvice(err)
		if standing(err) {
			message = a.advice(err)
		}
		if last == nil {
			if lost != "" {
				err = fmt.Errorf("%w; %s", err, lost)
			}
			return nil, nil, fmt.Errorf("ask what this host shall hold: %w", err)
		}
		return last, []string{message}, nil
	}
	if fresh == nil {
		return last, nil, nil
	}
	problem, err := a.takeDesired(fresh)
	if err != nil {
		if last == nil {
			return nil, nil, err
		}
		return last, []string{"what the authority sent is not taken: " + err.Error()}, nil
	}
	return fresh, nonEmpty(lost, problem), nil
}

// clockAdvice says that a node's certificate which is not valid yet may be a clock that is behind.
func (a *Agent) clockAdvice(err error) string {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !ok || invalid.Reason != x509.Expired {
		return ""
	}
	return fmt.Sprintf("; this host's clock says %s: is it right?", a.now().UTC().Format(time.RFC3339))
}

func nonEmpty(texts ...string) []string {
	var all []string
	for _, t := range texts {
		if t != "" {
			all = append(all, t)
		}
	}
	return all
}

// advice says what to do where the authority refuses the host itself.
func (a *Agent) advice(err error) string {
	return fmt.Sprintf("the authority refuses this host: %v. What is placed stays and is kept as it is; nothing is renewed. "+
		"To let it in again: chancery host replace %s, and on this host: chancery agent join --again --token-file F", err, a.Host())
}
