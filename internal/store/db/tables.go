package db

import (
	"context"
	"database/sql"
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strings"
)

// Table is a table as backup, restore and the move to another engine see it: all that they need to copy it without knowing what
// it means.
type Table struct {
	Name    string
	Columns []Column
	Key     []string // the columns of the primary key, in its order; rows are streamed in that order
	parents []string // the tables that its foreign keys point to
}

// Column is a column and its type: TEXT, BIGINT or BYTEA, on both engines.
type Column struct {
	Name    string
	Type    string
	NotNull bool
}

// Tables lists all tables, those that foreign keys point to before those that point.
func Tables(ctx context.Context, tx *Tx) ([]Table, error) {
	list := listPostgres
	if tx.d.dialect == SQLite {
		list = listSQLite
	}
	tables, err := list(ctx, tx)
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	return inOrder(tables)
}

// inOrder puts parents first, and otherwise keeps the order of names.
func inOrder(tables []Table) ([]Table, error) {
	var done []Table
	placed := func(name string) bool { return slices.ContainsFunc(done, func(t Table) bool { return t.Name == name }) }
	for len(done) < len(tables) {
		before := len(done)
		for _, t := range tables {
			ready := !slices.ContainsFunc(t.parents, func(p string) bool { return p != t.Name && !placed(p) })
			if ready && !placed(t.Name) {
				done = append(done, t)
			}
		}
		if len(done) == before {
			return nil, fmt.Errorf("the foreign keys of the tables go in a circle")
		}
	}
	return done, nil
}

// Rows streams the table in the order of its key. Each row has one string, int64, []byte or nil for each column; it may be
// kept. A failure ends the stream with its error.
func (t Table) Rows(ctx context.Context, tx *Tx) iter.Seq2[[]any, error] {
	tail := ""
	if len(t.Key) > 0 {
		tail = " ORDER BY " + strings.Join(t.Key, ", ")
	}
	return t.stream(ctx, tx, tail)
}

// stream reads rows; tail is what follows the table's name in the statement.
func (t Table) stream(ctx context.Context, tx *Tx, tail string, args ...any) iter.Seq2[[]any, error] {
	return func(yield func([]any, error) bool) {
		rows, err := tx.Query(ctx, "SELECT "+t.columnList()+" FROM "+t.Name+tail, args...)
		if err != nil {
			yield(nil, err)
			return
		}
		defer rows.Close()
		dest := make([]any, len(t.Columns))
		for rows.Next() {
			row := make([]any, len(t.Columns))
			for i := range row {
				dest[i] = t.Columns[i].holder()
			}
			if err := rows.Scan(dest...); err != nil {
				yield(nil, fmt.Errorf("read a row of %s: %w", t.Name, err))
				return
			}
			for i := range row {
				row[i] = value(dest[i])
			}
			if !yield(row, nil) {
				return
			}
		}
		if err := rows.Err(); err != nil {
			yield(nil, fmt.Errorf("read %s: %w", t.Name, err))
		}
	}
}

// Insert adds rows of the shape that Rows gives, several to a statement.
func (t Table) Insert(ctx context.Context, tx *Tx, rows [][]any) error {
	const parameters = 900 // both engines take more, but a statement that grows with them is prepared for nothing
	step := max(1, parameters/max(1, len(t.Columns)))
	for chunk := range slices.Chunk(rows, step) {
		var query strings.Builder
		fmt.Fprintf(&query, "INSERT INTO %s (%s) VALUES ", t.Name, t.columnList())
		var args []any
		for i, row := range chunk {
			if len(row) != len(t.Columns) {
				return fmt.Errorf("a row for %s has %d values, not %d", t.Name, len(row), len(t.Columns))
			}
			for j, v := range row {
				switch {
				case j == 0 && i == 0:
					query.WriteString("($1")
				case j == 0:
					fmt.Fprintf(&query, ", ($%d", len(args)+1)
				default:
					fmt.Fprintf(&query, ", $%d", len(args)+1)
				}
				args = append(args, v)
			}
			query.WriteString(")")
		}
		if _, err := tx.Exec(ctx, query.String(), args...); err != nil {
			return fmt.Errorf("insert into %s: %w", t.Name, err)
		}
	}
	return nil
}

// Only is the table as somebody else knows it: with these columns, in this order. A column that is left out must take
// NULL, or Insert will fail.
func (t Table) Only(names []string) (Table, error) {
	only := Table{Name: t.Name, Key: t.Key, parents: t.parents}
	for _, name := range names {
		i := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Name == name })
		if i < 0 {
			return Table{}, fmt.Errorf("table %s has no column %q", t.Name, name)
		}
		only.Columns = append(only.Columns, t.Columns[i])
	}
	return only, nil
}

// Count counts the rows.
func (t Table) Count(ctx context.Context, tx *Tx) (n int64, err error) {
	return n, tx.QueryRow(ctx, "SELECT COUNT(*) FROM "+t.Name).Scan(&n)
}

func (t Table) columnList() string {
	names := make([]string, len(t.Columns))
	for i, c := range t.Columns {
		names[i] = c.Name
	}
	return strings.Join(names, ", ")
}

func (c Column) holder() any {
	switch c.Type {
	case "TEXT":
		return new(sql.NullString)
	case "BIGINT":
		return new(sql.NullInt64)
	}
	return new(any) // and not []byte, in which SQLite's driver makes an empty value and NULL look alike
}

func value(holder any) any {
	switch h := holder.(type) {
	case *sql.NullString:
		if h.Valid {
			return h.String
		}
	case *sql.NullInt64:
		if h.Valid {
			return h.Int64
		}
	case *any:
		if b, ok := (*h).([]byte); ok {
			return append([]byte{}, b...)
		}
	}
	return nil
}

// plainName is what a name must be to stand in a statement unquoted; our migrations use no other.
var plainName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

func listSQLite(ctx context.Context, tx *Tx) ([]Table, error) {
	names, err := TextColumn(ctx, tx, `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY name`)
	if err != nil {
		return nil, err
	}
	var tables []Table
	for _, name := range names {
		t := Table{Name: name}
		rows, err := tx.Query(ctx, "SELECT name, type, \"notnull\", pk FROM pragma_table_info($1) ORDER BY cid", name)
		if err != nil {
			return nil, err
		}
		place := map[int]string{}
		for rows.Next() {
			var c Column
			var pk int
			if err := rows.Scan(&c.Name, &c.Type, &c.NotNull, &pk); err != nil {
				rows.Close()
				return nil, err
			}
			t.Columns = append(t.Columns, c)
			if pk > 0 {
				place[pk] = c.Name
			}
		}
		if err := rows.Close(); err != nil {
			return nil, err
		}
		for i := 1; i <= len(place); i++ {
			t.Key = append(t.Key, place[i])
		}
		if t.parents, err = TextColumn(ctx, tx, `SELECT DISTINCT "table" FROM pragma_foreign_key_list($1)`, name); err != nil {
			return nil, err
		}
		tables = append(tables, t)
	}
	return check(tables)
}

func listPostgres(ctx context.Context, tx *Tx) ([]Table, error) {
	names, err := TextColumn(ctx, tx, `SELECT table_name FROM information_schema.tables
		WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' ORDER BY table_name COLLATE "C"`)
	if err != nil {
		return nil, err
	}
	var tables []Table
	for _, name := range names {
		t := Table{Name: name}
		rows, err := tx.Query(ctx, `SELECT column_name, UPPER(data_type), CASE is_nullable WHEN 'NO' THEN 1 ELSE 0 END
			FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position`, name)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var c Column
			var notNull int
			if err := rows.Scan(&c.Name, &c.Type, &notNull); err != nil {
				rows.Close()
				return nil, err
			}
			c.NotNull = notNull == 1
			t.Columns = append(t.Columns, c)
		}
		if err := rows.Close(); err != nil {
			return nil, err
		}
		if t.Key, err = TextColumn(ctx, tx, `SELECT k.column_name FROM information_schema.table_constraints c
			JOIN information_schema.key_column_usage k ON k.constraint_schema = c.constraint_schema AND k.constraint_name = c.constraint_name
			WHERE c.table_schema = current_schema() AND c.table_name = $1 AND c.constraint_type = 'PRIMARY KEY' ORDER BY k.ordinal_position`, name); err != nil {
			return nil, err
		}
		if t.parents, err = TextColumn(ctx, tx, `SELECT DISTINCT u.table_name FROM information_schema.table_constraints c
			JOIN information_schema.constraint_table_usage u ON u.constraint_schema = c.constraint_schema AND u.constraint_name = c.constraint_name
			WHERE c.table_schema = current_schema() AND c.table_name = $1 AND c.constraint_type = 'FOREIGN KEY'`, name); err != nil {
			return nil, err
		}
		tables = append(tables, t)
	}
	return check(tables)
}

// check refuses names and types that the copies could not carry.
func check(tables []Table) ([]Table, error) {
	for _, t := range tables {
		if !plainName.MatchString(t.Name) {
			return nil, fmt.Errorf("the table %q is not one of ours", t.Name)
		}
		for _, c := range t.Columns {
			if !plainName.MatchString(c.Name) || !slices.Contains([]string{"TEXT", "BIGINT", "BYTEA"}, c.Type) {
				return nil, fmt.Errorf("the column %s.%s has type %q, which is none of TEXT, BIGINT, BYTEA", t.Name, c.Name, c.Type)
			}
		}
	}
	return tables, nil
}

// TextColumn reads a query's one column of text.
func TextColumn(ctx context.Context, tx *Tx, query string, args ...any) (all []string, err error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, rows.Err()
}
