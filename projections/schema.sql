-- views.db, version 1: what the log adds up to. Every row here can be made
-- again from the log; the file may be deleted at any time.

-- The generations of each view. The tables of one end in _<generation>. A new
-- one is built beside the live one, then they change places.
CREATE TABLE views (
	name       TEXT    NOT NULL,
	generation INTEGER NOT NULL,
	version    INTEGER NOT NULL, -- of the code that made its rows
	state      TEXT    NOT NULL CHECK (state IN ('live', 'rebuilding', 'dropped')),
	position   INTEGER NOT NULL, -- of the last event applied
	event      BLOB    NOT NULL, -- the id of that event: whether this is still the same log
	PRIMARY KEY (name, generation)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX views_live ON views (name) WHERE state = 'live';

-- Streams that wait because one of their events could not be applied. All
-- events of the stream from the revision on wait with it. Times are Unix time
-- in microseconds.
CREATE TABLE parked (
	view       TEXT    NOT NULL,
	generation INTEGER NOT NULL,
	stream     TEXT    NOT NULL,
	revision   INTEGER NOT NULL,
	position   INTEGER NOT NULL,
	error      TEXT    NOT NULL, -- without personal data
	since      INTEGER NOT NULL,
	attempts   INTEGER NOT NULL,
	next       INTEGER NOT NULL, -- when it is tried again
	PRIMARY KEY (view, generation, stream)
) STRICT, WITHOUT ROWID;
