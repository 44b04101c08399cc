-- +goose Up
-- readers from: 12

-- What the last hand-over of a lease was. given is what it wrote into expires_at: while the two are one, the new holder has not said a word
-- since. given_from is who had the lease before, and given_pinned whom it was pinned to, of the first of several that nobody answered.
ALTER TABLE leases ADD COLUMN given BIGINT NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN given_from TEXT NOT NULL DEFAULT '';
ALTER TABLE leases ADD COLUMN given_pinned TEXT NOT NULL DEFAULT '';

-- A suspension (fence = -2) ends by itself: the process that had the fence, which is suspended, goes on after suspended_until, in microseconds
-- by the database's clock. 0 is that of programs from before these columns, which others end.
ALTER TABLE write_mark ADD COLUMN suspended BIGINT NOT NULL DEFAULT 0;
ALTER TABLE write_mark ADD COLUMN suspended_until BIGINT NOT NULL DEFAULT 0;
