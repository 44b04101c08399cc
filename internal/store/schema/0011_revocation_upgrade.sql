-- +goose Up

-- Entries of permanent revocations whose reason became keyCompromise later, as they were. Where one stands in a CRL segment,
-- lists leave it out: the new one stands in its row of revocation.
CREATE TABLE revocation_upgrade (
    certificate BIGINT NOT NULL PRIMARY KEY,
    issuer BIGINT NOT NULL,
    crl_partition BIGINT NOT NULL,
    entry BYTEA NOT NULL
);

CREATE INDEX revocation_upgrade_crl ON revocation_upgrade (issuer, crl_partition);
