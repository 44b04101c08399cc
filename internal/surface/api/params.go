package api

import (
	"crypto/rand"
	"time"

	"chancery/client"
	"chancery/internal/fault"
	"github.com/danielgtaylor/huma/v2"
)

// Keyed is what every mutating call takes. What is embedded here is exported because huma looks only at exported fields.
type Keyed struct {
	IdempotencyKey string `header:"Idempotency-Key" minLength:"1" maxLength:"255" pattern:"^[!-~]+$" doc:"a repeated call with the same key gets the first call's answer; without one, each call is its own"`
}

// given is the caller's key, empty where there is none.
func (k Keyed) given() string { return k.IdempotencyKey }

// key is the caller's key, or one that nobody else has.
func (k Keyed) key() string {
	if k.IdempotencyKey == "" {
		return rand.Text()
	}
	return k.IdempotencyKey
}

// Paged is what every list takes.
type Paged struct {
	After string `query:"after" maxLength:"1024" doc:"the page after this key; what an answer gives as next"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"how many at most"`
}

type (
	none struct{}

	// in is a call whose input is its body.
	in[T any] struct {
		Keyed
		Body T
	}
	// in0 is a mutating call that says all in its path.
	in0 struct {
		Keyed
		Body *client.Nothing
	}
	// named is a call on one object.
	named struct {
		Name string `path:"name" maxLength:"255"`
	}
	// namedIn is a call on one object with a body.
	namedIn[T any] struct {
		Keyed
		Name string `path:"name" maxLength:"255"`
		Body T
	}
	// namedAct is a call on one object without a body.
	namedAct struct {
		Keyed
		Name string `path:"name" maxLength:"255"`
		Body *client.Nothing
	}
	// namedList is a list that belongs to an object.
	namedList struct {
		Paged
		Name string `path:"name" maxLength:"255"`
	}

	// SerialOf names a certificate.
	SerialOf struct {
		Serial string `path:"serial" maxLength:"128" doc:"the serial number in hexadecimal"`
		Issuer string `query:"issuer" maxLength:"255" doc:"needed where two issuers share the serial"`
	}
	serialIn[T any] struct {
		Keyed
		SerialOf
		Body T
	}

	serialAct struct {
		Keyed
		SerialOf
		Body *client.Nothing
	}

	// out is an answer with a body and the usual status.
	out[T any] struct{ Body T }
	// outStatus is an answer whose status depends.
	outStatus[T any] struct {
		Status int
		Body   T
	}
	// outStream is an answer that is written as it comes.
	outStream struct{ Body func(huma.Context) }
	// outNone is an answer without a body.
	outNone struct{}
)

func answer[T any](body T) *out[T] { return &out[T]{body} }

// page makes a page of items in their wire form.
func page[S, T any](items []S, next string, wire func(S) T) *out[client.Page[T]] {
	p := client.Page[T]{Items: make([]T, len(items)), Next: next}
	for i, item := range items {
		p.Items[i] = wire(item)
	}
	return answer(p)
}

// moment reads a time of a query; an empty text is none.
func moment(text, name string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return t, fault.New(fault.Invalid, "%q is not a time such as 2030-01-31T12:00:00Z (RFC 3339)", text).At("query " + name)
	}
	return t.UTC(), nil
}
