package db_test

import (
	"testing"

	"chancery/internal/store/db"
)

func TestParametersInOrderLoseTheirNames(t *testing.T) {
	for query, want := range map[string]string{
		"SELECT 1": "SELECT 1",
		"INSERT INTO t (a, b) VALUES ($1, $2), ($3, $4)":   "INSERT INTO t (a, b) VALUES (?, ?), (?, ?)",
		"SELECT $1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11":        "SELECT ?,?,?,?,?,?,?,?,?,?,?",
		"SELECT a FROM t WHERE a = $1 OR b = $1":           "SELECT a FROM t WHERE a = $1 OR b = $1",
		"SELECT a FROM t WHERE a = $2 AND b = $1":          "SELECT a FROM t WHERE a = $2 AND b = $1",
		"SELECT a FROM t WHERE a = '$1' AND b = $1":        "SELECT a FROM t WHERE a = '$1' AND b = ?",
		"SELECT a FROM t WHERE a = 'it''s $1' AND b = $1":  "SELECT a FROM t WHERE a = 'it''s $1' AND b = ?",
		"SELECT a FROM t WHERE a = 'open AND b = $1":       "SELECT a FROM t WHERE a = 'open AND b = $1",
		`SELECT "$1" FROM t WHERE b = $1`:                  `SELECT "$1" FROM t WHERE b = ?`,
		"SELECT a FROM t WHERE a = ?1 AND b = $1":          "SELECT a FROM t WHERE a = ?1 AND b = $1",
		"SELECT a FROM t WHERE a = $1 AND b = $name":       "SELECT a FROM t WHERE a = $1 AND b = $name",
		"SELECT a FROM t WHERE a = $1 AND b = $02":         "SELECT a FROM t WHERE a = $1 AND b = $02",
		"SELECT a FROM t WHERE a = $1 AND b = $3 AND c=$2": "SELECT a FROM t WHERE a = $1 AND b = $3 AND c=$2",
	} {
		if got := db.Anonymous(query); got != want {
			t.Errorf("%s\nbecame %s\nwant   %s", query, got, want)
		}
	}
}
