// Package once keeps idempotency keys: a call repeated with its key gets the answer of the first, byte for byte, and a key used
// again for another request is refused. The row is written in the transaction of what it stands for, so that the answer exists
// exactly if the act does; that is also how an unknown outcome of a commit is resolved.
package once

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
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
		return nil, false, fault.New(fault.Invalid, "the idempotency key has %d octets; at most %d pass", len(key), maxKey)
	}
	var hash []byte
	err = tx.QueryRow(ctx, "SELECT request_hash, response FROM once WHERE caller = $1 AND request_key = $2", caller, key).Scan(&hash, &response)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, false, nil
	case err != nil:
		return nil, false, err
	case !bytes.Equal(hash, request):
		return nil, false, fault.New(fault.Conflict, "the idempotency key %q was used for another request", key).
			WithHint("use a fresh key for a new request, and repeat the old one unchanged")
	}
	return response, true, nil
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

// Prune forgets up to limit responses older than before, and says how many it forgot; call it again while that is limit.
func Prune(ctx context.Context, tx *db.Tx, before time.Time, limit int) (int64, error) {
	return tx.Exec(ctx, `DELETE FROM once WHERE created_at < $1 AND (caller, request_key) IN
		(SELECT caller, request_key FROM once WHERE created_at < $1 ORDER BY created_at LIMIT $2)`, db.Micros(before), limit)
}
