-- +goose Up

-- One row per CRL. scope is complete, delta, or the number of a partition. A list is building while its octets are stored,
-- current from the one transaction that publishes it, and past when the next one of its scope is. number and base are
-- decimal, since an uploaded list's may have 20 octets. change is the last change of a status that the list takes into
-- account. The DER is head, the chunks in their order, tail.
CREATE TABLE crl (
    id TEXT NOT NULL PRIMARY KEY,
    issuer TEXT NOT NULL,
    scope TEXT NOT NULL,
    state TEXT NOT NULL,
    number TEXT NOT NULL,
    base TEXT NOT NULL,
    this_update BIGINT NOT NULL,
    next_update BIGINT NOT NULL,
    change BIGINT NOT NULL,
    scheduled BIGINT NOT NULL,
    entries BIGINT NOT NULL,
    size BIGINT NOT NULL,
    head BYTEA NOT NULL,
    tail BYTEA NOT NULL
);

CREATE UNIQUE INDEX crl_current ON crl (issuer, scope) WHERE state = 'current';

CREATE INDEX crl_by_scope ON crl (issuer, scope, id);

CREATE TABLE crl_chunk (
    crl TEXT NOT NULL,
    seq BIGINT NOT NULL,
    octets BYTEA NOT NULL,
    PRIMARY KEY (crl, seq)
);

-- Issuers of which an operator asked for a CRL now, with what it should say: an empty number, or a time of 0, leaves that
-- to the schedule.
CREATE TABLE crl_wanted (
    issuer TEXT NOT NULL PRIMARY KEY,
    since BIGINT NOT NULL,
    number TEXT NOT NULL,
    this_update BIGINT NOT NULL,
    next_update BIGINT NOT NULL
);

-- The greatest CRLNumber that each issuer ever used, in decimal. It outlives the lists.
CREATE TABLE crl_number (
    issuer TEXT NOT NULL PRIMARY KEY,
    number TEXT NOT NULL
);

-- Entries of permanent revocations, packed, so that a long list is read in few rows. not_after holds 8 octets for each
-- entry, seconds since 1970, in the order of the entries; earliest is the least of them, in microseconds.
CREATE TABLE crl_segment (
    id TEXT NOT NULL PRIMARY KEY,
    issuer TEXT NOT NULL,
    crl_partition BIGINT NOT NULL,
    entries BIGINT NOT NULL,
    size BIGINT NOT NULL,
    earliest BIGINT NOT NULL,
    packed BYTEA NOT NULL,
    not_after BYTEA NOT NULL
);

CREATE INDEX crl_segment_scope ON crl_segment (issuer, crl_partition, id);

-- Up to which change the permanent revocations of a partition stand in segments.
CREATE TABLE crl_packed (
    issuer TEXT NOT NULL,
    crl_partition BIGINT NOT NULL,
    change BIGINT NOT NULL,
    PRIMARY KEY (issuer, crl_partition)
);

-- Holds are never packed, because they end.
CREATE INDEX revocation_held ON revocation (issuer, crl_partition, change) WHERE state = 'held';

-- Delegated OCSP responders of an issuer, the newest of which signs.
CREATE TABLE ocsp_responder (
    id TEXT NOT NULL PRIMARY KEY,
    issuer TEXT NOT NULL,
    key_id TEXT NOT NULL,
    certificate BYTEA NOT NULL,
    not_before BIGINT NOT NULL,
    not_after BIGINT NOT NULL
);

CREATE INDEX ocsp_responder_issuer ON ocsp_responder (issuer, not_after);

-- +goose Down
DROP TABLE ocsp_responder;
DROP INDEX revocation_held;
DROP TABLE crl_packed;
DROP TABLE crl_segment;
DROP TABLE crl_number;
DROP TABLE crl_wanted;
DROP TABLE crl_chunk;
DROP TABLE crl;
