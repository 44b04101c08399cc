package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestFramesComeBackAsTheyWere(t *testing.T) {
	for _, fields := range [][][]byte{nil, {{}}, {[]byte("a"), {}, []byte("bc")}, {bytes.Repeat([]byte("x"), 300<<10)}} {
		var frame bytes.Buffer
		if err := Write(&frame, Sign, fields...); err != nil {
			t.Fatal(err)
		}
		what, got, err := Read(iotest.HalfReader(&frame), MaxMessage)
		if err != nil || what != Sign || len(got) != len(fields) {
			t.Fatalf("%d fields came back as %d, verb %d: %v", len(fields), len(got), what, err)
		}
		for i := range fields {
			if !bytes.Equal(got[i], fields[i]) {
				t.Errorf("field %d is not what was sent", i)
			}
		}
	}
	if err := Write(io.Discard, Sign, make([]byte, MaxMessage)); err == nil {
		t.Error("a message over the limit was sent")
	}
	var frame bytes.Buffer
	if err := Write(&frame, byte(OK), make([]byte, MaxAnswer)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Read(&frame, MaxAnswer); !errors.Is(err, ErrFrame) {
		t.Errorf("an answer over its limit is read: %v", err)
	}
}

// FuzzRead holds that whatever is read, written again gives the same octets, and that nothing is read beyond the frame.
func FuzzRead(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x0a\x02\x00\x00\x00\x05hello"))
	f.Add([]byte("\x00\x00\x00\x01\x01rest"))
	f.Add([]byte("\x04\x00\xff\xff\x01"))
	f.Add([]byte("\x00\x00\x00\x06\x01\x00\x00\x00\xffx"))
	f.Add([]byte("\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, in []byte) {
		what, fields, err := Read(bytes.NewReader(in), MaxMessage)
		if err != nil {
			if !errors.Is(err, ErrFrame) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		var again bytes.Buffer
		if err := Write(&again, what, fields...); err != nil {
			t.Fatal(err)
		}
		if size := 4 + int(binary.BigEndian.Uint32(in)); !bytes.Equal(again.Bytes(), in[:size]) {
			t.Fatalf("%x was read, and written it is %x", in[:size], again.Bytes())
		}
	})
}
