// Package loop is the agent of a host: it joins the authority, fetches what the host shall hold, makes keys, asks for
// certificates, has them placed and probed, reports what was observed, and goes on with what it knows while the authority
// is away.
//
// What it stands on: internal/agent/recipe resolves a recipe into a plan, internal/agent/probe looks at the host and the
// live port, internal/agent/place touches the files. This package decides when, with which key and which trust, and in
// which order: what must be trusted is placed before what is trusted by it.
//
// Specifications: RFC 2986 (requests), RFC 5280 sections 4 to 6 (certificates, CRLs), RFC 9110 section 6.6.1 (Date, by which
// a wrong clock is noticed). There are no divergences of its own; what is checked before a file is touched is in probe.
//
// Concurrency: one Agent has one state directory, which it holds by a lock; a second one is refused. Run, Once, CSR,
// PlaceOffline and Repair are not to be called at the same time on one Agent. Status reads without the lock.
//
// Durability: every file of the state directory is replaced whole (keyfile.ReplaceFile), and what belongs together is in
// one file: an identity with its key and generation, a key with the request that was sent for it and its idempotency key,
// a key with its certification path. So a crash leaves either the old or the new of each, and the next run goes on.
package loop
