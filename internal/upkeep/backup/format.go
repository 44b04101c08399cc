package backup

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"chancery/internal/fault"
)

// The plain text inside a backup is the line magic, a frame with the header, then for each table a frame with its
// description, its rows, and an end mark; then a frame with the trailer and one with the signature of all before it. Frames are
// JSON with their length before them.
//
// age splits the cipher text into chunks, each sealed, and marks the last one, so what is cut short, changed or put in
// another order does not decrypt; the trailer's counts guard against a program that wrote less than it meant to. But age proves
// no sender, and the recipient is public: that the authority wrote a backup, the signature says.
const magic = "chancery backup 2\n"

// Header says what a backup is of.
type Header struct {
	Authority string    `json:"authority"`
	Node      string    `json:"node"` // which node wrote it
	Schema    int64     `json:"schema"`
	Engine    string    `json:"engine"`
	Version   string    `json:"version"`
	At        time.Time `json:"at"`
}

// tableFrame describes the rows that follow it.
type tableFrame struct {
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
}

// trailer ends a backup.
type trailer struct {
	Tables int              `json:"tables"`
	Rows   map[string]int64 `json:"rows"`
}

// signature is the last frame: the audit key's signature over signed(SHA-256 of all before the frame).
type signature struct {
	Signature []byte `json:"signature"`
}

// What stands before a value or instead of a row.
const (
	markNull  = 0
	markInt   = 1
	markText  = 2
	markBytes = 3

	markEnd = 0 // no more rows
	markRow = 1
)

// The limits keep a hostile file, which after all somebody may have encrypted to the recovery recipient, from taking all
// memory.
const (
	maxFrame = 1 << 20
	maxValue = 64 << 20
)

type encoder struct {
	w   *bufio.Writer
	sum hash.Hash // of what w let out
	buf []byte
}

func (e *encoder) frame(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	e.buf = binary.AppendUvarint(e.buf[:0], uint64(len(text)))
	if _, err := e.w.Write(e.buf); err != nil {
		return err
	}
	_, err = e.w.Write(text)
	return err
}

func (e *encoder) row(values []any) error {
	e.buf = append(e.buf[:0], markRow)
	for _, v := range values {
		switch v := v.(type) {
		case nil:
			e.buf = append(e.buf, markNull)
		case int64:
			e.buf = binary.AppendVarint(append(e.buf, markInt), v)
		case string:
			e.buf = append(binary.AppendUvarint(append(e.buf, markText), uint64(len(v))), v...)
		case []byte:
			e.buf = append(binary.AppendUvarint(append(e.buf, markBytes), uint64(len(v))), v...)
		default:
			return fmt.Errorf("a value of type %T has no form in a backup", v)
		}
	}
	_, err := e.w.Write(e.buf)
	return err
}

func (e *encoder) endTable() error { return e.w.WriteByte(markEnd) }

type decoder struct{ r *summed }

// summed keeps the hash of what was read through it.
type summed struct {
	r   *bufio.Reader
	sum hash.Hash
	one [1]byte
}

func (s *summed) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	return n, err
}

// ReadByte makes it an io.ByteReader.
func (s *summed) ReadByte() (byte, error) {
	b, err := s.r.ReadByte()
	if err == nil {
		s.one[0] = b
		s.sum.Write(s.one[:])
	}
	return b, err
}

// broken says that a backup cannot be read, and hides nothing that would help: the cause is age's or the end of the file.
func broken(what string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fault.New(fault.Invalid, "the backup is damaged: %s: %w", what, err)
}

func (d *decoder) length(limit uint64) (int, error) {
	n, err := binary.ReadUvarint(d.r)
	if err != nil {
		return 0, err
	}
	if n > limit {
		return 0, fmt.Errorf("a length of %d is over the limit of %d", n, limit)
	}
	return int(n), nil
}

// bytes reads n octets. What is not there yet is not allocated at once, so that a false length costs nothing.
func (d *decoder) bytes(n int) ([]byte, error) {
	const step = 1 << 20
	if n <= step {
		b := make([]byte, n)
		_, err := io.ReadFull(d.r, b)
		return b, err
	}
	b, err := io.ReadAll(io.LimitReader(d.r, int64(n)))
	if err == nil && len(b) < n {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

func (d *decoder) frame(what string, v any) error {
	n, err := d.length(maxFrame)
	if err != nil {
		return broken(what, err)
	}
	text, err := d.bytes(n)
	if err != nil {
		return broken(what, err)
	}
	if err := json.Unmarshal(text, v); err != nil {
		return broken(what, err)
	}
	return nil
}

// row reads a row of n values; it returns nil at the end of the table.
func (d *decoder) row(n int) ([]any, error) {
	mark, err := d.r.ReadByte()
	if err != nil {
		return nil, broken("row", err)
	}
	if mark == markEnd {
		return nil, nil
	}
	if mark != markRow {
		return nil, broken("row", fmt.Errorf("mark %d", mark))
	}
	values := make([]any, n)
	for i := range values {
		if values[i], err = d.value(); err != nil {
			return nil, broken("value", err)
		}
	}
	return values, nil
}

func (d *decoder) value() (any, error) {
	kind, err := d.r.ReadByte()
	if err != nil {
		return nil, err
	}
	switch kind {
	case markNull:
		return nil, nil
	case markInt:
		return binary.ReadVarint(d.r)
	case markText, markBytes:
		n, err := d.length(maxValue)
		if err != nil {
			return nil, err
		}
		b, err := d.bytes(n)
		if err != nil {
			return nil, err
		}
		if kind == markText {
			return string(b), nil
		}
		return b, nil
	}
	return nil, fmt.Errorf("value of kind %d", kind)
}
