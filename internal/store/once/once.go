// Package once keeps idempotency keys: a call repeated with its key gets the answer of the first, byte for byte, and a key used
// again for another request is refused. The row is written in the transaction of what it stands for, so that the answer exists
// exactly if the act does; that is also how an unknown outcome of a commit is resolved.
package once

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// maxKey bounds an idempotency key, in octets.
const maxKey = 255

// Hash is the SHA-256 by which requests are told apart; each part counts with its length, so parts cannot run together.
func Hash(parts ...[]byte) []byte {
	h := sha256.New()
	for _, p := range parts {
		var n [8]byte
		for i := range n {
			n[i] = byte(len(p) >> (56 - 8*i))
		}
		h.Write(n[:])
		h.Write(p)
	}
	return h.Sum(nil)
}

// Lookup finds the response that was remembered for (caller, key); found is false where there is none. A key that was used
// with another request is a Conflict. An empty key is never found.
func Lookup(ctx context.Context, tx *db.Tx, caller, key string, request []byte) (response []byte, found bool, err error) {
	if key == "" {
		return nil, false, nil
	}
	if len(key) > maxKey {
		return nil, false, tooLong(key)
	}
	var hash []byte
	err = tx.QueryRow(ctx, "SELECT request_hash, response FROM once WHERE caller = $1 AND request_key = $2", caller, key).Scan(&hash, &response)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	case !bytes.Equal(hash, request):
		return nil, false, usedFor(key)
	}
	return response, true, nil
}

func tooLong(key string) error {
	return fault.New(fault.Invalid, "the idempotency key has %d octets; at most %d pass", len(key), maxKey)
}

func usedFor(key string) error {
	return fault.New(fault.Conflict, "the idempotency key %q was used for another request", key).
		WithHint("use a fresh key for a new request, and repeat the old one unchanged")
}

// Remember keeps the response to (caller, key), for which Lookup found none in the same transaction. An empty key is not kept.
// When another node keeps the key in the same moment, the function is run again and finds that response.
func Remember(ctx context.Context, tx *db.Tx, caller, key string, request, response []byte, now time.Time) error {
	if key == "" {
		return nil
	}
	if response == nil {
		response = []byte{}
	}
	return tx.Send(ctx, "INSERT INTO once (caller, request_key, request_hash, response, created_at) VALUES ($1, $2, $3, $4, $5)",
		caller, key, request, response, db.Micros(now))
}

// Replace keeps another response to (caller, key), for which Lookup found one in the same transaction: for an act whose answer
// holds what is stored nowhere, and which is done anew in place of the first.
func Replace(ctx context.Context, tx *db.Tx, caller, key string, response []byte, now time.Time) error {
	_, err := tx.Exec(ctx, "UPDATE once SET response = $1, created_at = $2 WHERE caller = $3 AND request_key = $4",
		response, db.Micros(now), caller, key)
	return err
}

// Do answers from memory, or else runs fn in the same transaction and remembers its response.
func Do(ctx context.Context, tx *db.Tx, caller, key string, request []byte, now time.Time, fn func() ([]byte, error)) ([]byte, error) {
	response, found, err := Lookup(ctx, tx, caller, key, request)
	if err != nil || found {
		return response, err
	}
	if response, err = fn(); err != nil {
		return nil, err
	}
	return response, Remember(ctx, tx, caller, key, request, response, now)
}

// Call is a call that may be repeated: whose it is, its idempotency key, and the hash of what it asks for. The zero Call has no
// key, so nothing is kept of it.
type Call struct {
	Caller, Key string
	Request     []byte
}

// Done is the answer of an act that has none.
type Done struct{}

// Act is Do for a call whose answer is an A, kept as JSON: the answer that an earlier call with the key got, or else what fn
// does now in the same transaction.
func Act[A any](ctx context.Context, tx *db.Tx, call Call, now time.Time, fn func() (A, error)) (A, error) {
	if call.Key == "" {
		return fn()
	}
	answer, found, err := Earlier[A](ctx, tx, call)
	if err != nil || found {
		return answer, err
	}
	if answer, err = fn(); err != nil {
		return answer, err
	}
	text, err := json.Marshal(answer)
	if err != nil {
		return answer, fmt.Errorf("encode the answer: %w", err)
	}
	return answer, Remember(ctx, tx, call.Caller, call.Key, call.Request, text, now)
}

// Earlier is the answer that Act kept of an earlier call with the key. Finding it writes its row again: the commit of the
// first call may be one whose outcome is unknown, and only a commit after it shows that the answer will stay.
func Earlier[A any](ctx context.Context, tx *db.Tx, call Call) (answer A, found bool, err error) {
	text, found, err := Lookup(ctx, tx, call.Caller, call.Key, call.Request)
	if err != nil || !found {
		return answer, false, err
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return answer, false, fmt.Errorf("decode the answer that was kept: %w", err)
	}
	_, err = tx.Exec(ctx, "UPDATE once SET response = response WHERE caller = $1 AND request_key = $2", call.Caller, call.Key)
	return answer, true, err
}

// Prune forgets up to limit responses older than before, and says how many it forgot; call it again while that is limit.
func Prune(ctx context.Context, tx *db.Tx, before time.Time, limit int) (int64, error) {
	return tx.Exec(ctx, `DELETE FROM once WHERE created_at < $1 AND (caller, request_key) IN
		(SELECT caller, request_key FROM once WHERE created_at < $1 ORDER BY created_at LIMIT $2)`, db.Micros(before), limit)
}
