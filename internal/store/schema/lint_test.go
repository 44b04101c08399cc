package schema_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// forbidden is what SQLite, PostgreSQL and the engines compatible with it do not have in common. The pattern is matched against
// SQL without its quoted texts.
var forbidden = map[string]*regexp.Regexp{
	"sequences (make ids in Go)":                     regexp.MustCompile(`\bSERIAL\b|(?i)\b(small|big)serial\b|\bnextval\b|\bAUTOINCREMENT\b|GENERATED\s+(ALWAYS|BY\s+DEFAULT)\s+AS\s+IDENTITY`),
	"the database's clock (pass microseconds)":       regexp.MustCompile(`(?i)\bnow\s*\(|\bCURRENT_(TIMESTAMP|TIME|DATE)\b|\btimestamptz?\b|\binterval\s*'`),
	"arrays (chunk the list)":                        regexp.MustCompile(`(?i)\bARRAY\s*\[|\bunnest\s*\(|=\s*ANY\s*\(|\b(text|bigint|bytea)\s*\[\s*\]`),
	"row locks (transactions are serializable)":      regexp.MustCompile(`(?i)\bFOR\s+(NO\s+KEY\s+)?(UPDATE|SHARE)\b|\bSKIP\s+LOCKED\b`),
	"advisory locks (take a lease)":                  regexp.MustCompile(`(?i)\bpg_(try_)?advisory_`),
	"LISTEN and NOTIFY (poll)":                       regexp.MustCompile(`(?i)^\s*(LISTEN|NOTIFY)\s+\w|\bpg_notify\b`),
	"triggers and procedures (code)":                 regexp.MustCompile(`(?i)\bCREATE\s+(OR\s+REPLACE\s+)?(TRIGGER|FUNCTION|PROCEDURE)\b`),
	"temporary tables":                               regexp.MustCompile(`(?i)\bCREATE\s+TEMP(ORARY)?\b`),
	"OFFSET (page by key)":                           regexp.MustCompile(`(?i)\bOFFSET\s+(\$?\d+)\b`),
	"all columns (list them)":                        regexp.MustCompile(`(?i)\bSELECT\s+\*\s|\bRETURNING\s+\*`),
	"INSERT OR, which only SQLite has (ON CONFLICT)": regexp.MustCompile(`(?i)\bINSERT\s+OR\b|\bREPLACE\s+INTO\b`),
	"? placeholders (write $1)":                      regexp.MustCompile(`\?`),
}

var (
	looksLikeSQL = regexp.MustCompile(`(?s)^\s*(SELECT\s.*|INSERT\s+(OR\s+\w+\s+)?INTO\s|REPLACE\s+INTO\s|UPDATE\s+\w+\s+SET\s|DELETE\s+FROM\s|CREATE\s+(UNIQUE\s+)?(TABLE|INDEX)\s|ALTER\s+TABLE\s|WITH\s+\w+.*\bAS\b|(LISTEN|NOTIFY)\s+\w)`)
	quoted       = regexp.MustCompile(`'(?:[^']|'')*'`)
	comment      = regexp.MustCompile(`(?m)--.*$`)
	columnType   = regexp.MustCompile(`(?m)^\s+([a-z][a-z0-9_]*)\s+([A-Z]+)\b`)
)

// onPostgreSQLOnly are statements that no other engine is sent, and the file that has each.
var onPostgreSQLOnly = map[string]string{
	// The row of an ended node is locked beside the lane, where transactions are READ COMMITTED; SQLite has one writer.
	"SELECT 1 FROM write_mark WHERE node = $1 FOR UPDATE": "internal/store/db/fence.go",
	// Sessions, and whom they wait for, are PostgreSQL's own.
	`SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.pid = ANY (pg_blocking_pids($1))
		AND a.state = 'idle in transaction' AND a.state_change < clock_timestamp() - interval '500 milliseconds' AND pg_has_role(a.usesysid, 'USAGE')`: "internal/store/db/fence.go",
	`WITH RECURSIVE holds(pid) AS (SELECT p FROM unnest(pg_blocking_pids($1)) AS p
		UNION SELECT p FROM holds b, unnest(pg_blocking_pids(b.pid)) AS p)
	SELECT b.pid, COALESCE(a.usename, ''), COALESCE(a.state, ''), COALESCE(a.wait_event, '') = 'SyncRep'
	FROM holds b LEFT JOIN pg_stat_activity a ON a.pid = b.pid WHERE b.pid = 0 OR cardinality(pg_blocking_pids(b.pid)) = 0`: "internal/store/db/blocked.go",
}

// TestSQLIsPortable reads every SQL text of the repository.
func TestSQLIsPortable(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	literals, migrations, excepted := 0, 0, 0
	check := func(where, text string) {
		file, _, _ := strings.Cut(filepath.ToSlash(strings.TrimPrefix(where, root+string(filepath.Separator))), ":")
		if onPostgreSQLOnly[text] == file {
			excepted++
			return
		}
		bare := quoted.ReplaceAllString(comment.ReplaceAllString(text, ""), "''")
		for rule, pattern := range forbidden {
			if hit := pattern.FindString(bare); hit != "" {
				t.Errorf("%s: %q: not portable: %s", where, hit, rule)
			}
		}
	}
	for _, top := range []string{"internal", "cmd", "client"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, entry fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case entry.IsDir() && (entry.Name() == "testdata" || entry.Name() == "pkitest"):
				return filepath.SkipDir
			case entry.Name() == "logins.sql": // an administrator's, for PostgreSQL alone; nodes run none of it
			case strings.HasSuffix(path, ".sql"):
				text, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				migrations++
				check(path, string(text))
				checkTypes(t, path, string(text))
			case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
				n, err := eachSQL(path, check)
				literals += n
				return err
			}
			return nil
		})
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if excepted != len(onPostgreSQLOnly) {
		t.Errorf("%d of %d exceptions were met: take out those that are no more", excepted, len(onPostgreSQLOnly))
	}
	if literals < 25 || migrations < 1 {
		t.Fatalf("the check saw %d statements and %d migrations; it would prove nothing", literals, migrations)
	}
}

// eachSQL calls check for each SQL text among the string constants of a Go file, and counts them.
func eachSQL(path string, check func(where, text string)) (n int, err error) {
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return 0, err
	}
	ast.Inspect(parsed, func(node ast.Node) bool {
		lit, ok := node.(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			return true
		}
		if text, err := strconv.Unquote(lit.Value); err == nil && looksLikeSQL.MatchString(text) {
			n++
			check(files.Position(lit.Pos()).String(), text)
		}
		return true
	})
	return n, nil
}

// checkTypes allows the three types that both engines have, and nothing that looks like another.
func checkTypes(t *testing.T, path, text string) {
	t.Helper()
	found := 0
	for _, m := range columnType.FindAllStringSubmatch(comment.ReplaceAllString(text, ""), -1) {
		found++
		switch m[2] {
		case "TEXT", "BIGINT", "BYTEA":
		default:
			t.Errorf("%s: column %s has type %s; only TEXT, BIGINT and BYTEA are portable", path, m[1], m[2])
		}
	}
	if found == 0 && strings.Contains(text, "CREATE TABLE") {
		t.Errorf("%s: no column was recognized; write each on a line of its own", path)
	}
}

// TestForbiddenIsSeen gives the check one text of each kind that it must refuse.
func TestForbiddenIsSeen(t *testing.T) {
	for _, text := range []string{
		"CREATE TABLE t (id BIGSERIAL)", "INSERT INTO t (at) VALUES (now())", "SELECT id FROM t WHERE id = ANY($1)",
		"SELECT id FROM t FOR UPDATE SKIP LOCKED", "SELECT pg_advisory_lock(1)", "LISTEN changes", "CREATE TRIGGER x",
		"CREATE TEMP TABLE t (id TEXT)", "SELECT id FROM t LIMIT 5 OFFSET 10", "SELECT * FROM t", "INSERT OR IGNORE INTO t (id) VALUES ($1)",
		"SELECT id FROM t WHERE id = ?",
	} {
		hit := false
		for _, pattern := range forbidden {
			hit = hit || pattern.MatchString(text)
		}
		if !hit {
			t.Errorf("%q passes", text)
		}
	}
}
