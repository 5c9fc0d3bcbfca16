-- views.db, version 2: the read models. Every row is derived from the log; the
-- file may be deleted while no server runs.

-- The id of the ledger whose log the views follow.
CREATE TABLE ledger (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	id  TEXT    NOT NULL
) STRICT;

-- The generations of each view. The names of a generation's tables end in
-- _<generation>. A rebuild builds a new generation beside the live one and
-- then switches to it.
CREATE TABLE views (
	name       TEXT    NOT NULL,
	generation INTEGER NOT NULL,
	version    INTEGER NOT NULL, -- of the projection that wrote its rows
	state      TEXT    NOT NULL CHECK (state IN ('live', 'rebuilding', 'dropped')),
	position   INTEGER NOT NULL, -- of the last event applied
	event      BLOB    NOT NULL, -- the id of that event; if the log has another one there, the file is refused
	PRIMARY KEY (name, generation)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX views_live ON views (name) WHERE state = 'live';

-- The parked streams: those with an event that the view could not apply. That
-- event, at the revision, and all later ones of the stream wait for a retry.
-- Times are Unix time in microseconds.
CREATE TABLE parked (
	view       TEXT    NOT NULL,
	generation INTEGER NOT NULL,
	stream     TEXT    NOT NULL,
	revision   INTEGER NOT NULL,
	position   INTEGER NOT NULL,
	error      TEXT    NOT NULL, -- without personal data
	since      INTEGER NOT NULL,
	attempts   INTEGER NOT NULL,
	next       INTEGER NOT NULL, -- time of the next attempt
	PRIMARY KEY (view, generation, stream)
) STRICT, WITHOUT ROWID;
