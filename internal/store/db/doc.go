// Package db is the durable ground of the authority: SQLite in the data directory, or PostgreSQL, behind one SQL text.
//
// # The text
//
// Statements use $1 placeholders, list their columns, and use only what SQLite, PostgreSQL and the engines compatible with
// PostgreSQL have in common: ON CONFLICT, RETURNING, the types TEXT, BIGINT and BYTEA. Times are int64 microseconds (Micros),
// ids are made in Go (NewID).
//
// # Writing
//
// Tx queues its function; the functions that wait are run one after the other in one shared, serializable transaction, so
// that a commit's fsync and round trip are paid once for up to 64 of them. A function that fails takes only its own writes
// with it. The function may run more than once (a conflict with another node, a neighbour that failed) and so must not
// sign, send or wait inside, and must set what it captures anew on each run. A statement that fails dooms the function,
// even when it ignores the error: PostgreSQL would refuse all that follows, so SQLite does too. Use ON CONFLICT DO NOTHING
// where a duplicate is expected.
//
// What many functions begin with, they can have read by one statement for all of them (TxAhead), and what they end with
// written so (Tx.BeforeCommit).
//
// Nothing is acknowledged before COMMIT has returned. COMMIT is never cancelled: not by the caller's context, and never by
// a cancel request, because PostgreSQL answers a cancelled wait for its standby with success. What a lost connection or a
// warning leaves open is ErrUnknownOutcome; the caller finds out by asking again with its idempotency key.
//
// # Concurrency
//
// A *DB may be used by many goroutines. Open starts no goroutine. There is no writer goroutine either: the caller that finds
// the lane free leads, runs the functions of those who queue up behind it (each on its own goroutine, so a panic unwinds the stack
// that caused it), commits, and passes the lane on.
package db
