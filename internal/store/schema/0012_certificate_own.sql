-- +goose Up

-- What the authority renews by itself: identities, and the certificates of OCSP responders. Counts of what will be missed
-- leave it out, and find it by this index. Few rows are in it, so it costs issuance nothing.
CREATE INDEX certificate_own ON certificate (profile, not_after, requester)
    WHERE state = 'valid' AND replaced_by = 0 AND profile IN ('identity', 'ocsp-responder');
