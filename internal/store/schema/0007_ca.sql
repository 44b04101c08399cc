-- +goose Up

-- number is the short form of id by which the rows of large tables refer to their issuer.
CREATE TABLE issuer (
    id TEXT NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    pool TEXT NOT NULL,
    state TEXT NOT NULL,
    is_default BIGINT NOT NULL,
    parent TEXT NOT NULL,
    key_id TEXT NOT NULL,
    subject BYTEA NOT NULL,
    public_key BYTEA NOT NULL,
    certificate BYTEA NOT NULL,
    chain BYTEA NOT NULL,
    csr BYTEA NOT NULL,
    crl TEXT NOT NULL,
    not_after BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE UNIQUE INDEX issuer_default ON issuer (pool) WHERE is_default = 1;

-- id grows with the time of issuance, and is what pages of lists are keyed by. name is the first name that a search
-- finds the certificate by; those with several have the others in certificate_name. der is empty for a record that was
-- imported without its certificate. replaces and replaced_by are 0 where there is none.
CREATE TABLE certificate (
    id BIGINT NOT NULL PRIMARY KEY,
    issuer BIGINT NOT NULL,
    serial BYTEA NOT NULL,
    state TEXT NOT NULL,
    name BYTEA NOT NULL,
    not_before BIGINT NOT NULL,
    not_after BIGINT NOT NULL,
    replaces BIGINT NOT NULL,
    replaced_by BIGINT NOT NULL,
    profile TEXT NOT NULL,
    profile_version BIGINT NOT NULL,
    requester TEXT NOT NULL,
    subject TEXT NOT NULL,
    der BYTEA NOT NULL
);

-- One issuer never uses a serial twice (RFC 5280 4.1.2.2). The serial leads, because callers often name nothing else.
CREATE UNIQUE INDEX certificate_serial ON certificate (serial, issuer);

CREATE INDEX certificate_by_name ON certificate (name, id);

CREATE INDEX certificate_by_requester ON certificate (requester, id);

-- For the few of a rare profile or issuer among a million others.
CREATE INDEX certificate_by_profile ON certificate (profile, id);

CREATE INDEX certificate_by_issuer ON certificate (issuer, id);

CREATE INDEX certificate_by_expiry ON certificate (not_after, id);

-- What will be missed when it expires: neither revoked nor replaced. Counts of it read the index alone.
CREATE INDEX certificate_live ON certificate (not_after) WHERE state = 'valid' AND replaced_by = 0;

CREATE TABLE certificate_name (
    name BYTEA NOT NULL,
    certificate BIGINT NOT NULL,
    PRIMARY KEY (name, certificate)
);

-- One row per certificate that was ever revoked or held. entry is the element of revokedCertificates as it stands in a
-- CRL; for a released hold, whose state is valid, it is the removeFromCRL entry, which only delta CRLs carry. change orders
-- all that happened under one issuer.
CREATE TABLE revocation (
    certificate BIGINT NOT NULL PRIMARY KEY,
    issuer BIGINT NOT NULL,
    crl_partition BIGINT NOT NULL,
    state TEXT NOT NULL,
    reason BIGINT NOT NULL,
    revoked_at BIGINT NOT NULL,
    invalidity_date BIGINT NOT NULL,
    not_after BIGINT NOT NULL,
    change BIGINT NOT NULL,
    entry BYTEA NOT NULL
);

CREATE INDEX revocation_crl ON revocation (issuer, crl_partition, state, change);

CREATE UNIQUE INDEX revocation_by_change ON revocation (issuer, change);

CREATE TABLE revocation_change (
    issuer BIGINT NOT NULL PRIMARY KEY,
    change BIGINT NOT NULL
);

-- SHA-256 of the SubjectPublicKeyInfo of keys that were revoked as compromised: they are never certified again.
CREATE TABLE compromised_key (
    spki BYTEA NOT NULL PRIMARY KEY,
    since BIGINT NOT NULL
);

CREATE TABLE request (
    id TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    requester TEXT NOT NULL,
    profile TEXT NOT NULL,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    body BYTEA NOT NULL,
    two_person BIGINT NOT NULL,
    assigned_to TEXT NOT NULL,
    decided_by TEXT NOT NULL,
    decided_at BIGINT NOT NULL,
    reason TEXT NOT NULL,
    certificate BIGINT NOT NULL,
    submitted_at BIGINT NOT NULL
);

CREATE INDEX request_by_state ON request (state, id);

CREATE INDEX request_by_requester ON request (requester, id);
