// Package revocation tells the world what was revoked: CRLs, signed by the holder of a lease, and OCSP answers.
//
// RFC 5280 §5 (complete, delta and partitioned CRLs), RFC 6960 and RFC 9654 (OCSP), RFC 5019 §6 (how long an answer may
// be kept).
//
// What was revoked is recorded by package ca: a row for each certificate, with its CRL entry encoded and with a number
// that orders the changes under one issuer. A list says up to which change it is complete, so the work that is due is
// plain from two numbers, on any node and after any crash. Permanent revocations are packed into segments in the
// background; a list of a million entries is then read in hundreds of rows, and streamed, signed and stored without ever
// being in memory. A revocation writes one row, whatever the length of the lists.
//
// Lists are made in four steps, and only the last one is seen: the octets are stored in chunks under a list that is
// "building"; the key signs; then one transaction checks the lease's epoch and that the CRLNumber still is the greatest,
// makes the list current, and records it in the audit chain. A node that dies before leaves chunks that the next holder
// sweeps away. A node that lost its lease cannot publish.
//
// Choices that the RFCs leave open:
//   - CRLNumber is max(last + 1, Unix milliseconds), one sequence for all lists of an issuer, so that not even a restored
//     backup goes back.
//   - An entry leaves when its certificate had ended before the last scheduled list of every scope of the issuer, so it
//     stood on one such list beyond its end (RFC 5280 §3.3).
//   - A delta CRL starts from the oldest complete CRL that is in force and not more than 1,000 changes back, so that who
//     fetched that one need not fetch the newest.
//   - A list longer than settings.CRL.WholeUpTo of an issuer that has neither delta nor partitions is signed for
//     revocations at most every five minutes.
//   - thisUpdate of an OCSP answer is on a grid of five minutes at most, and not the moment of the question, so that all nodes
//     give the same answer; see grid.go.
//   - While the database is older than its primary, or away, answers are dated by what is known, and end with it. A serial
//     that is not known then may have been issued since, and the answer is tryLater.
//   - A serial that was never issued is unknown, signed; an issuer that is not ours is unauthorized, unsigned.
//   - An expired certificate goes on being answered from its record, as long as that is kept.
//
// A Service may be used by many goroutines. It starts none: Run does the singleton work, Follow keeps the cache of a node
// true.
package revocation

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/store/audit"
	"chancery/internal/store/db"
	"chancery/internal/store/keys"
	"chancery/internal/store/settings"
)

// Options are what a Service works with. All but Logger are required.
type Options struct {
	DB       *db.DB
	CA       *ca.CA
	Keys     *keys.Store
	Settings *settings.Store
	Audit    *audit.Log
	Logger   *slog.Logger
}

// Service signs CRLs and answers OCSP requests.
type Service struct {
	db       *db.DB
	ca       *ca.CA
	keys     *keys.Store
	settings *settings.Store
	audit    *audit.Log
	logger   *slog.Logger

	answers    *cache
	responders responders
	directory  directory
	shelf      shelf
	prepared   time.Time // when responders were loaded; used by Follow alone
	bare       bool      // the shelf could not be stocked; used by Follow alone

	running sync.WaitGroup // what was begun under leases; Run alone begins and waits

	readingShort, readingLong chan struct{} // as many as lists are read at one time
}

// New returns a service. It starts nothing.
func New(o Options) *Service {
	logger := o.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	answers := newCache()
	answers.beside = o.DB.ReadsStandby()
	return &Service{
		db: o.DB, ca: o.CA, keys: o.Keys, settings: o.Settings, audit: o.Audit, logger: logger,
		answers:    answers,
		responders: responders{byIssuer: make(map[string]*loadedResponders)},

		readingShort: make(chan struct{}, shortAtOnce),
		readingLong:  make(chan struct{}, longAtOnce),
	}
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
