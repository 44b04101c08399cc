-- +goose Up
-- readers from: 12

-- Machines that hold certificates. principal is who the machine's agent is: a machine that takes another's place is another
-- principal. generation counts its identities. change is the number of the last change of what it shall hold, of one sequence
-- for all hosts (host_change). problem is 1 while the host is suspect or one of its placements failed; lists begin with these.
CREATE TABLE host (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    pool TEXT NOT NULL,
    principal TEXT NOT NULL,
    state TEXT NOT NULL,
    message TEXT NOT NULL,
    problem BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    identity_issuer TEXT NOT NULL,
    identity_serial TEXT NOT NULL,
    identity_spki BYTEA NOT NULL,
    identity_ends BIGINT NOT NULL,
    agent TEXT NOT NULL,
    change BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    joined_at BIGINT NOT NULL,
    removed_at BIGINT NOT NULL
);

-- The name of a host that was removed may be used again.
CREATE UNIQUE INDEX host_by_name ON host (name) WHERE removed_at = 0;

CREATE INDEX host_by_problem ON host (problem, name) WHERE removed_at = 0;

CREATE INDEX host_by_removal ON host (removed_at) WHERE removed_at > 0;

CREATE UNIQUE INDEX host_by_principal ON host (principal);

CREATE INDEX host_by_change ON host (change);

-- One row: the number of the newest change.
CREATE TABLE host_change (
    id BIGINT NOT NULL PRIMARY KEY,
    change BIGINT NOT NULL
);

-- The names and addresses of hosts, as certificates spell them; kind is dns or ip. No two hosts have one in common.
CREATE TABLE host_name (
    name TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    host TEXT NOT NULL,
    position BIGINT NOT NULL
);

CREATE INDEX host_name_by_host ON host_name (host, position);

-- Recipes on hosts. parameters and observed are JSON; state, serial, served and not_after are observed's.
CREATE TABLE host_placement (
    host TEXT NOT NULL,
    name TEXT NOT NULL,
    recipe TEXT NOT NULL,
    parameters TEXT NOT NULL,
    position BIGINT NOT NULL,
    state TEXT NOT NULL,
    not_after BIGINT NOT NULL,
    observed TEXT NOT NULL,
    observed_at BIGINT NOT NULL,
    PRIMARY KEY (host, name)
);

CREATE INDEX host_placement_by_state ON host_placement (state);

CREATE INDEX host_placement_by_expiry ON host_placement (not_after) WHERE not_after > 0;

-- Join tokens, one for each host that awaits a machine. Only the SHA-256 of the secret is here. spki is the SHA-256 of the key
-- that redeemed it, empty before; reason is why the machine before is ended, -1 where there was none. refused counts who came
-- with another key.
CREATE TABLE host_token (
    id TEXT NOT NULL PRIMARY KEY,
    host TEXT NOT NULL UNIQUE,
    hash BYTEA NOT NULL UNIQUE,
    reason BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    expires BIGINT NOT NULL,
    spki BYTEA NOT NULL,
    issuer TEXT NOT NULL,
    serial TEXT NOT NULL,
    redeemed_at BIGINT NOT NULL,
    refused BIGINT NOT NULL
);

-- When an agent last called, within a minute.
CREATE TABLE host_seen (
    host TEXT NOT NULL PRIMARY KEY,
    seen_at BIGINT NOT NULL
);

-- Principals of machines that were removed or replaced, until all that they held is revoked.
CREATE TABLE host_ending (
    principal TEXT NOT NULL PRIMARY KEY,
    reason BIGINT NOT NULL,
    actor TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
