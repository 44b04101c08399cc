package once

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"chancery/internal/store/db"
)

// Question is one call's key among those of a shared transaction, for which they are looked up, and remembered, by one
// statement for all. It serves a single db.TxAhead.
type Question struct {
	Caller, Key string
	Request     []byte

	hash, response []byte // what LookupAll found
	found          bool
}

// kept is the key under which what RememberLast was given waits for the end of the transaction.
type kept struct{}

// remembered is a row that waits.
type remembered struct {
	*Question
	response []byte
	now      time.Time
}

// LookupAll looks all questions up. Answer says what it found.
func LookupAll(ctx context.Context, tx *db.Tx, questions []*Question) error {
	var ids [][2]string
	byKey := map[[2]string][]*Question{}
	for _, q := range questions {
		q.hash, q.response, q.found = nil, nil, false
		id := [2]string{q.Caller, q.Key}
		if q.Key == "" || len(q.Key) > maxKey {
			continue // Answer knows
		}
		if byKey[id] = append(byKey[id], q); len(byKey[id]) == 1 {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	// Not one SELECT with OR: where all are of one caller PostgreSQL would look for that alone, and read all rows of it, as
	// long as it has no statistics of the table.
	var query strings.Builder
	var args []any
	for i, id := range db.Padded(ids) {
		if i > 0 {
			query.WriteString(" UNION ALL ")
		}
		query.WriteString("SELECT caller, request_key, request_hash, response FROM once WHERE caller = $" + strconv.Itoa(len(args)+1) +
			" AND request_key = $" + strconv.Itoa(len(args)+2))
		args = append(args, id[0], id[1])
	}
	rows, err := tx.Query(ctx, query.String(), args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id [2]string
		var hash, response []byte
		if err := rows.Scan(&id[0], &id[1], &hash, &response); err != nil {
			return err
		}
		for _, q := range byKey[id] {
			q.hash, q.response, q.found = hash, response, true
		}
	}
	return rows.Err()
}

// Answer is Lookup for a question that LookupAll was asked.
func (q *Question) Answer(tx *db.Tx) (response []byte, found bool, err error) {
	if q.Key == "" {
		return nil, false, nil
	}
	if len(q.Key) > maxKey {
		return nil, false, tooLong(q.Key)
	}
	hash, response, found := q.hash, q.response, q.found
	for _, item := range tx.Pending(kept{}) { // of a call with the same key in this very transaction
		if r := item.(remembered); r.Caller == q.Caller && r.Key == q.Key {
			hash, response, found = r.Request, r.response, true
		}
	}
	if found && !bytes.Equal(hash, q.Request) {
		return nil, false, usedFor(q.Key)
	}
	return response, found, nil
}

// RememberLast is Remember for a question whose Answer found nothing. Its row is written right before COMMIT with those of its
// neighbours; until then only Answer knows of it.
func (q *Question) RememberLast(tx *db.Tx, response []byte, now time.Time) {
	if response == nil {
		response = []byte{}
	}
	if q.Key != "" {
		tx.BeforeCommit(kept{}, remembered{q, response, now}, insertAll)
	}
}

func insertAll(ctx context.Context, tx *db.Tx, items []any) error {
	var query strings.Builder
	query.WriteString("INSERT INTO once (caller, request_key, request_hash, response, created_at) VALUES ")
	args := make([]any, 0, 5*len(items))
	for i, item := range items {
		if i > 0 {
			query.WriteString(", ")
		}
		n := len(args)
		fmt.Fprintf(&query, "($%d, $%d, $%d, $%d, $%d)", n+1, n+2, n+3, n+4, n+5)
		r := item.(remembered)
		args = append(args, r.Caller, r.Key, r.Request, r.response, db.Micros(r.now))
	}
	_, err := tx.Exec(ctx, query.String(), args...)
	return err
}
