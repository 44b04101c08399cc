// Package audit records who did what, so that a later change of the record shows.
//
// Each node has one chain of events. An event is written in the transaction of what it reports, and its hash covers the
// hash of the event before it. Whoever holds the checkpoint lease signs, now and then, a statement over the heads of all
// chains; agents and operators keep such checkpoints, so not even the owner of the database, who could compute every
// hash again, can rewrite what lies behind a checkpoint that somebody has seen. Events after the newest checkpoint are
// protected by their hashes only.
//
// Append may be called from any goroutine, within a transaction. The chain's order is the order of commits.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Event is one recorded act. The caller fills in Time, Actor, Action, Object and Detail; the chain adds the rest.
type Event struct {
	Node string // whose chain this is
	Seq  int64  // from 1, without gaps
	// Time is when the act happened, as its service read the clock. Within a chain it does not go back, as far as acts that
	// overlapped are concerned: Append sets it to that of the event before, where it was up to a minute earlier.
	Time time.Time
	// Actor is who acted, as access.Principal.Actor says it; Action is a verb such as certificate.issue; Object is the
	// identifier of what was acted upon.
	Actor, Action, Object string
	// Detail is what else is worth knowing, as any value that has a JSON form. Secrets have no place in it.
	Detail any
	Prev   [32]byte // the hash of the event before it; zero in the first
	Hash   [32]byte // over all other fields
}

// line is an event's JSON form, in Export and over the API.
type line struct {
	Node   string          `json:"node"`
	Seq    int64           `json:"seq"`
	Time   string          `json:"time"`
	Actor  string          `json:"actor"`
	Action string          `json:"action"`
	Object string          `json:"object"`
	Detail json.RawMessage `json:"detail"`
	Prev   string          `json:"prev"`
	Hash   string          `json:"hash"`
}

// MarshalJSON writes the event with its time in RFC 3339 and its hashes in hexadecimal.
func (e Event) MarshalJSON() ([]byte, error) {
	detail, err := canonical(e.Detail)
	if err != nil {
		return nil, err
	}
	return json.Marshal(line{
		e.Node, e.Seq, e.Time.UTC().Format(time.RFC3339Nano), e.Actor, e.Action, e.Object, json.RawMessage(detail),
		fmt.Sprintf("%x", e.Prev), fmt.Sprintf("%x", e.Hash),
	})
}

// The bounds of an event, which keep a caller's input from swelling the record. Detail that is larger belongs elsewhere.
const (
	maxName   = 512
	maxDetail = 64 << 10
)

// entry is an event as it is stored: detail in canonical JSON, time in microseconds.
type entry struct {
	node, actor, action, object, detail string
	seq, time                           int64
	prev, hash                          [32]byte
}

// newEntry checks what the caller filled in. It must refuse all that a database would refuse, because an event shares its
// INSERT with those of other callers.
func newEntry(node string, e Event) (entry, error) {
	for _, field := range []struct{ name, value string }{
		{"actor", e.Actor}, {"action", e.Action}, {"object", e.Object},
	} {
		if !utf8.ValidString(field.value) || strings.ContainsRune(field.value, 0) || len(field.value) > maxName {
			return entry{}, fmt.Errorf("audit event %s: %s %.60q is not text of at most %d octets", e.Action, field.name, field.value, maxName)
		}
	}
	if e.Actor == "" || e.Action == "" || e.Time.IsZero() {
		return entry{}, fmt.Errorf("audit event %q lacks its actor, action or time", e.Action)
	}
	detail, err := canonical(e.Detail)
	if err != nil {
		return entry{}, fmt.Errorf("audit event %s: %w", e.Action, err)
	}
	if len(detail) > maxDetail {
		return entry{}, fmt.Errorf("audit event %s: its detail has %d octets; at most %d are kept", e.Action, len(detail), maxDetail)
	}
	return entry{
		node: node, time: e.Time.UnixMicro(), actor: e.Actor, action: e.Action, object: e.Object, detail: string(detail),
	}, nil
}

// event returns the entry in the form that callers see.
func (n *entry) event() Event {
	return Event{
		Node: n.node, Seq: n.seq, Time: time.UnixMicro(n.time).UTC(), Actor: n.actor, Action: n.action, Object: n.object,
		Detail: json.RawMessage(n.detail), Prev: n.prev, Hash: n.hash,
	}
}

// sum returns the hash that the entry must have. Every field is preceded by its length or has a fixed one, so that no two
// events have the same encoding; the label keeps a hash from being taken for that of anything else.
func (n *entry) sum() [32]byte {
	b := make([]byte, 0, 256+len(n.detail))
	b = append(b, "chancery audit event 1\n"...)
	b = append(b, n.prev[:]...)
	b = appendText(b, n.node)
	b = binary.BigEndian.AppendUint64(b, uint64(n.seq))
	b = binary.BigEndian.AppendUint64(b, uint64(n.time))
	for _, text := range []string{n.actor, n.action, n.object, n.detail} {
		b = appendText(b, text)
	}
	return sha256.Sum256(b)
}

func appendText(b []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(text))), text...)
}

// canonical returns v's JSON with sorted names, without spaces, and with numbers as they were written, so that equal
// details are equal text. It is kept as text and never computed again: the hash is over what is stored.
func canonical(v any) ([]byte, error) {
	if v == nil {
		return []byte("{}"), nil
	}
	raw, ok := v.(json.RawMessage)
	if !ok {
		var err error
		if raw, err = marshal(v); err != nil {
			return nil, err
		}
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return nil, fmt.Errorf("detail: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("detail: something follows the JSON value")
	}
	return marshal(tree)
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("detail: %w", err)
	}
	return bytes.TrimRight(b.Bytes(), "\n"), nil
}
