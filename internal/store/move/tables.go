package move

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"chancery/internal/fault"
	"chancery/internal/store/db"
)

// Progress is how far a table has come.
type Progress struct {
	Last     []any // the key of the last row that is there; nil before the first
	Copied   int64
	Complete bool
}

// ReadProgress reads how far a table has come. last tells the kinds of the key's columns.
func ReadProgress(ctx context.Context, tx *db.Tx, table string) (p Progress, err error) {
	var last string
	err = tx.QueryRow(ctx, "SELECT last_key, copied, complete FROM move_table WHERE name = $1", table).Scan(&last, &p.Copied, &p.Complete)
	if errors.Is(err, sql.ErrNoRows) {
		return Progress{}, nil
	}
	if err == nil && last != "" {
		p.Last, err = decodeKey(last)
	}
	if err != nil {
		return Progress{}, fmt.Errorf("read how far table %s has come: %w", table, err)
	}
	return p, nil
}

// Advance records that a table has come from one point to the next, in the transaction that brought its rows. It is a Conflict where
// it stands elsewhere: these rows, or others, are there already.
func Advance(ctx context.Context, tx *db.Tx, table string, from, to Progress) error {
	now, err := ReadProgress(ctx, tx, table)
	if err != nil {
		return err
	}
	if now.Copied != from.Copied || now.Complete != from.Complete {
		return fault.New(fault.Conflict, "table %s has %d rows and not %d: another process copies it too", table, now.Copied, from.Copied)
	}
	last, err := encodeKey(to.Last)
	if err != nil {
		return err
	}
	complete := 0
	if to.Complete {
		complete = 1
	}
	_, err = tx.Exec(ctx, `INSERT INTO move_table (name, last_key, copied, complete) VALUES ($1, $2, $3, $4)
		ON CONFLICT (name) DO UPDATE SET last_key = excluded.last_key, copied = excluded.copied, complete = excluded.complete`,
		table, last, to.Copied, complete)
	return err
}

// keyPart is one value of a key, with its kind: a number of JSON would lose digits of a large integer.
type keyPart struct {
	Text  *string `json:"text,omitempty"`
	Int   *int64  `json:"int,omitempty,string"`
	Bytes *[]byte `json:"bytes,omitempty"`
}

func encodeKey(key []any) (string, error) {
	if key == nil {
		return "", nil
	}
	parts := make([]keyPart, len(key))
	for i, v := range key {
		switch v := v.(type) {
		case string:
			parts[i].Text = &v
		case int64:
			parts[i].Int = &v
		case []byte:
			parts[i].Bytes = &v
		default:
			return "", fmt.Errorf("a key holds a value of type %T", v)
		}
	}
	text, err := json.Marshal(parts)
	return string(text), err
}

func decodeKey(text string) ([]any, error) {
	var parts []keyPart
	if err := json.Unmarshal([]byte(text), &parts); err != nil {
		return nil, err
	}
	key := make([]any, len(parts))
	for i, p := range parts {
		switch {
		case p.Text != nil:
			key[i] = *p.Text
		case p.Int != nil:
			key[i] = *p.Int
		case p.Bytes != nil:
			key[i] = *p.Bytes
		default:
			return nil, fmt.Errorf("part %d of a key has no value", i)
		}
	}
	return key, nil
}
