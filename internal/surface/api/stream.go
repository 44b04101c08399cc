package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"chancery/client"
	"chancery/internal/surface/problem"
	"github.com/danielgtaylor/huma/v2"
)

// stream answers with what write produces, as it comes. Its end is marked by a trailer, because its status is sent before
// anybody knows whether it will succeed; a failure breaks the connection.
func (c *call) stream(media string, write func(io.Writer) error) func(huma.Context) {
	return func(huma.Context) {
		h := c.w.Header()
		h.Set("Content-Type", media)
		h.Set("Cache-Control", "no-store")
		h.Set("Trailer", client.StreamTrailer)
		out := &steady{c: c}
		if err := write(out); err != nil {
			if !out.begun {
				h.Del("Trailer")
				problem.Write(c.w, c.r, err)
				return
			}
			c.event.Fail(err)
			panic(http.ErrAbortHandler)
		}
		if !out.begun {
			c.w.WriteHeader(http.StatusOK)
		}
		h.Set(client.StreamTrailer, "complete")
	}
}

// send answers with a body that is at hand.
func (c *call) send(media string, body []byte) func(huma.Context) {
	return func(huma.Context) {
		h := c.w.Header()
		h.Set("Content-Type", media)
		h.Set("Content-Length", strconv.Itoa(len(body)))
		c.w.WriteHeader(http.StatusOK)
		c.w.Write(body) // an error here is a caller that has gone; the event has the status
	}
}

// sendJSON is send for what is encoded here, because it was negotiated.
func (c *call) sendJSON(v any) (func(huma.Context), error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	return c.send(mediaJSON, body), nil
}

// streamSized is stream for an answer whose length is known: net/http breaks the connection where it is not kept.
func (c *call) streamSized(media string, size int64, write func(io.Writer) error) func(huma.Context) {
	return func(huma.Context) {
		h := c.w.Header()
		h.Set("Content-Type", media)
		h.Set("Content-Length", strconv.FormatInt(size, 10))
		out := &steady{c: c}
		if err := write(out); err != nil {
			if !out.begun {
				h.Del("Content-Length")
				problem.Write(c.w, c.r, err)
				return
			}
			c.event.Fail(err)
			panic(http.ErrAbortHandler)
		}
	}
}

// steady writes under a deadline for each piece: a reader that stalls is cut off, a slow one is served to the end.
type steady struct {
	c        *call
	begun    bool
	deadline time.Time
}

func (s *steady) Write(b []byte) (int, error) {
	if now := time.Now(); s.deadline.Sub(now) < writeStall/2 {
		s.deadline = now.Add(writeStall)
		if err := s.c.control.SetWriteDeadline(s.deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return 0, err
		}
	}
	s.begun = true
	return s.c.w.Write(b)
}

// begin sends the status before there is anything to write.
func (s *steady) begin() {
	s.begun = true
	s.c.w.WriteHeader(http.StatusOK)
	s.Flush()
}

// Flush sends what was written so far; for streams whose pieces are worth having early.
func (s *steady) Flush() { s.c.control.Flush() }
