// Package wire is what a node and its helper chancery-pkcs11 say to each other on a Unix socket. It imports the standard
// library alone, because the helper is a module of its own.
//
// A frame is a length of four octets and a body: one octet that says what it is, then fields, each a length of four octets
// and its octets. The node sends a Verb, the helper answers with a Code; one at a time on a connection, so a node opens as
// many connections as it wants signatures at once. Open's PIN travels in a field of its own and stands in no other place.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The verbs. Look finds the token and logs in to nothing, and has an empty answer; Open answers with a Key in JSON; Sign takes the key's number, a Mechanism and what is signed, and answers with
// the signature as PKCS #11 gives it.
const (
	Open byte = iota + 1
	Sign
	Look
)

// Code says how a request ended. Every Code but OK comes with one field, a sentence for people.
type Code byte

// The codes. They tell apart what a node does about them; what a person does stands in the sentence.
const (
	OK      Code = iota
	Refused      // the request is not one
	Module       // the library cannot be loaded or initialised
	Absent       // no slot holds such a token
	Object       // the token holds no such key, or several, or one that cannot be used
	Unable       // the token cannot sign so
	PIN          // the PIN is wrong: it must not be tried again
	Locked       // the token takes no PIN any more, or only one more try, which nobody should make unasked
	Gone         // the token or its sessions went away; a new helper may find it again
	Failed       // anything else
)

// Mechanism is how a key signs.
type Mechanism byte

// The mechanisms. ECDSA, PKCS1 and PSS sign digests; PKCS1 is given a whole DigestInfo. EdDSA signs messages.
const (
	ECDSA Mechanism = iota + 1
	PKCS1
	PSSWithSHA256 // the salt is as long as the hash, in the three
	PSSWithSHA384
	PSSWithSHA512
	EdDSA
)

// Selector says which key is meant, as JSON in Open's first field, whose second is the PIN, and in Look's only one. What is empty fits anything.
type Selector struct {
	Token        string  `json:"token,omitempty"`
	Serial       string  `json:"serial,omitempty"`
	Manufacturer string  `json:"manufacturer,omitempty"`
	Model        string  `json:"model,omitempty"`
	Slot         *uint64 `json:"slot,omitempty"`
	Object       string  `json:"object,omitempty"`
	ID           []byte  `json:"id,omitempty"`

	// Careful is set where nobody knows how the last login ended: none is tried then while the token counts wrong PINs.
	Careful bool `json:"careful,omitempty"`
}

// Key is an opened key, as JSON. Number stands for it in this process of the helper.
type Key struct {
	Number       uint32 `json:"number"`
	Token        string `json:"token"`
	Serial       string `json:"serial"`
	Manufacturer string `json:"manufacturer"`
	Model        string `json:"model"`
	Object       string `json:"object"`
	ID           []byte `json:"id"`
	SPKI         []byte `json:"spki"`        // DER
	Extractable  bool   `json:"extractable"` // the token may give it out
}

// MaxMessage bounds a frame: EdDSA signs whole messages, and a CRL may have so many octets.
const MaxMessage = 64<<20 + 64<<10

// MaxAnswer bounds what the helper answers: a key, a signature or a sentence.
const MaxAnswer = 64 << 10

const maxFields = 8

// Write sends a frame in one call of w.
func Write(w io.Writer, what byte, fields ...[]byte) error {
	size := 1
	for _, f := range fields {
		size += 4 + len(f)
	}
	if size > MaxMessage || len(fields) > maxFields {
		return fmt.Errorf("a message of %d octets in %d fields is over %d octets or %d fields", size, len(fields), MaxMessage, maxFields)
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+size), uint32(size))
	frame = append(frame, what)
	for _, f := range fields {
		frame = binary.BigEndian.AppendUint32(frame, uint32(len(f)))
		frame = append(frame, f...)
	}
	_, err := w.Write(frame)
	return err
}

// ErrFrame is returned for what is no frame.
var ErrFrame = errors.New("what was sent is no frame of the helper's protocol")

// Read receives a frame whose body has so many octets at most. Memory is taken as octets come and not as the length promises.
func Read(r io.Reader, most uint32) (what byte, fields [][]byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size == 0 || size > most {
		return 0, nil, ErrFrame
	}
	body, err := readBody(r, int(size))
	if err != nil {
		return 0, nil, err
	}
	what, body = body[0], body[1:]
	for len(body) > 0 {
		if len(body) < 4 || len(fields) == maxFields {
			return 0, nil, ErrFrame
		}
		n := binary.BigEndian.Uint32(body)
		if body = body[4:]; uint64(n) > uint64(len(body)) {
			return 0, nil, ErrFrame
		}
		fields = append(fields, body[:n:n])
		body = body[n:]
	}
	return what, fields, nil
}

func readBody(r io.Reader, size int) ([]byte, error) {
	const step = 64 << 10
	body := make([]byte, min(size, step))
	for at := 0; ; {
		if _, err := io.ReadFull(r, body[at:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if at = len(body); at == size {
			return body, nil
		}
		body = append(body, make([]byte, min(size-at, at))...)
	}
}
