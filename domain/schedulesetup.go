package domain

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"time"

	"accountledger/eventstore"
)

// ScheduleSetup is what is planned for every new account that is not VERIFIED.
type ScheduleSetup struct {
	SetupID       string              `json:"setupId"`
	Kind          ScheduleKind        `json:"kind"`
	OffsetSeconds int64               `json:"offsetSeconds"` // from the account's creation
	ReminderNo    int                 `json:"reminderNo,omitzero"`
	TargetStatus  Status              `json:"targetStatus,omitzero"`
	PeriodSeconds int64               `json:"periodSeconds,omitzero"`
	Revision      eventstore.Revision `json:"revision"` // of the configuration, when it last changed
}

// maxReminders is how many reminders can be set up.
const maxReminders = 5

// ScheduleSetupSet defines a setup, or changes one.
type ScheduleSetupSet struct {
	SetupID       string       `json:"setupId" pii:"clear"`
	Kind          ScheduleKind `json:"kind" pii:"clear"`
	OffsetSeconds int64        `json:"offsetSeconds" pii:"clear"`
	ReminderNo    int          `json:"reminderNo,omitzero" pii:"clear"`
	TargetStatus  Status       `json:"targetStatus,omitzero" pii:"clear"`
	PeriodSeconds int64        `json:"periodSeconds,omitzero" pii:"clear"`
	Created       bool         `json:"created,omitzero" pii:"clear"`
	Fields        []string     `json:"fields" pii:"clear"` // names of the members that changed
}

func (ScheduleSetupSet) eventType() string { return "schedule-setup.set.v1" }

func (e ScheduleSetupSet) evolve(c *Config, x Entry) {
	c.ScheduleSetups[e.SetupID] = ScheduleSetup{e.SetupID, e.Kind, e.OffsetSeconds, e.ReminderNo, e.TargetStatus, e.PeriodSeconds, x.Revision}
}

func (e ScheduleSetupSet) public(Entry) []publicEvent {
	return objectSet("SCHEDULE_SETUP", e.Created, e.SetupID, e.Fields)
}

func (ScheduleSetupSet) catalogue() []PublicType {
	return objectSetTypes("SCHEDULE_SETUP", "a setup of schedules")
}

// ScheduleSetupDeleted removes a setup. What it planned stays planned.
type ScheduleSetupDeleted struct {
	SetupID string `json:"setupId" pii:"clear"`
}

func (ScheduleSetupDeleted) eventType() string { return "schedule-setup.deleted.v1" }

func (e ScheduleSetupDeleted) evolve(c *Config, _ Entry) { delete(c.ScheduleSetups, e.SetupID) }

func (e ScheduleSetupDeleted) public(Entry) []publicEvent {
	return objectDeleted("SCHEDULE_SETUP", e.SetupID)
}

func (ScheduleSetupDeleted) catalogue() []PublicType {
	return objectDeletedTypes("SCHEDULE_SETUP", "a setup of schedules is deleted")
}

// setups are the setups in the order in which they fall due.
func (c *Config) setups() []ScheduleSetup {
	if len(c.ScheduleSetups) == 0 {
		return nil
	}
	return slices.SortedFunc(maps.Values(c.ScheduleSetups), BySetup)
}

func setupRevision(c *Config, id string) eventstore.Revision {
	if s, ok := c.ScheduleSetups[id]; ok {
		return s.Revision
	}
	return eventstore.NoStream
}

// PutScheduleSetup defines a setup, or changes one.
type PutScheduleSetup struct {
	SetupID       string
	Kind          ScheduleKind
	Offset        string // from the creation, ISO 8601: P14D; or, instead,
	OffsetSeconds int64  // in seconds
	ReminderNo    int
	TargetStatus  Status
	PeriodSeconds int64
}

func (p PutScheduleSetup) revision(c *Config) eventstore.Revision { return setupRevision(c, p.SetupID) }

func (p PutScheduleSetup) decide(c *Config, _ time.Time) ([]Event, error) {
	if p.TargetStatus.systemManaged() {
		return nil, refuse(CodeStatusSystemManaged, "The status %s is set by merging or deleting, not by a schedule.", p.TargetStatus)
	}
	var f faults
	if !objectID.MatchString(p.SetupID) {
		f.add("/setupId", "a letter or digit and up to 63 letters, digits, '_', '.' or '-'")
	}
	f.scheduleRules(p.Kind, p.TargetStatus, p.ReminderNo, p.PeriodSeconds)
	if p.Kind == ScheduleReminder && (p.ReminderNo < 1 || p.ReminderNo > maxReminders) {
		f.add("/reminderNo", "1 to %d", maxReminders)
	}
	seconds, pointer := p.OffsetSeconds, "/offsetSeconds"
	if p.Offset != "" {
		var ok bool
		pointer = "/offset"
		if seconds, ok = parseDuration(p.Offset); !ok || p.OffsetSeconds != 0 {
			f.add(pointer, "an ISO 8601 duration of weeks, days, hours, minutes and seconds, and no offsetSeconds beside it")
		}
	}
	if seconds < 1 || seconds > int64(maxAhead/time.Second) {
		f.add(pointer, "1 second to 100 years")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	old, exists := c.ScheduleSetups[p.SetupID]
	setup := ScheduleSetup{p.SetupID, p.Kind, seconds, p.ReminderNo, p.TargetStatus, p.PeriodSeconds, old.Revision}
	after := maps.Clone(c.ScheduleSetups)
	after[p.SetupID] = setup
	if f.setupOrder(after, pointer); f.err() != nil {
		return nil, f.err()
	}
	fields := changed(!exists, member{"kind", old.Kind != p.Kind}, member{"offsetSeconds", old.OffsetSeconds != seconds},
		member{"reminderNo", old.ReminderNo != p.ReminderNo}, member{"targetStatus", old.TargetStatus != p.TargetStatus},
		member{"periodSeconds", old.PeriodSeconds != p.PeriodSeconds})
	if len(fields) == 0 {
		return nil, nil
	}
	return []Event{ScheduleSetupSet{p.SetupID, p.Kind, seconds, p.ReminderNo, p.TargetStatus, p.PeriodSeconds, !exists, fields}}, nil
}

// setupOrder holds that reminders are numbered from 1 without holes, each
// later than the one before, then comes the status change, then the deletion.
func (f *faults) setupOrder(setups map[string]ScheduleSetup, offset string) {
	ordered := slices.SortedFunc(maps.Values(setups), func(a, b ScheduleSetup) int {
		if rank := slices.Index(ScheduleKinds, a.Kind) - slices.Index(ScheduleKinds, b.Kind); rank != 0 {
			return rank
		}
		return a.ReminderNo - b.ReminderNo
	})
	for i, s := range ordered {
		var before ScheduleSetup
		if i > 0 {
			before = ordered[i-1]
		}
		switch {
		case s.Kind == ScheduleReminder && s.ReminderNo != i+1:
			f.add("/reminderNo", "reminders are numbered from 1, without holes, each number once")
			return
		case s.Kind != ScheduleReminder && s.Kind == before.Kind:
			f.add("/kind", "there is one setup of a status change at most, and one of a deletion")
			return
		case s.OffsetSeconds <= before.OffsetSeconds:
			f.add(offset, "each reminder is later than the one before, a status change later than all reminders, a deletion later than all")
			return
		}
	}
}

// DeleteScheduleSetup removes a setup. Reminders go in reverse order, so that
// their numbers have no hole. What was planned for accounts stays planned.
type DeleteScheduleSetup struct{ SetupID string }

func (d DeleteScheduleSetup) revision(c *Config) eventstore.Revision {
	return setupRevision(c, d.SetupID)
}

func (d DeleteScheduleSetup) decide(c *Config, _ time.Time) ([]Event, error) {
	setup, ok := c.ScheduleSetups[d.SetupID]
	if !ok {
		return nil, refuse(CodeScheduleSetupNotFound, "There is no such setup.")
	}
	for _, s := range c.ScheduleSetups {
		if setup.Kind == ScheduleReminder && s.ReminderNo > setup.ReminderNo {
			return nil, refuse(CodeScheduleSetupOrder, "Reminders are removed in reverse order, and there is number %d.", s.ReminderNo)
		}
	}
	return []Event{ScheduleSetupDeleted(d)}, nil
}

// isoDuration is a duration of ISO 8601, section 5.5.2, without years and
// months, which are of no fixed length, and without fractions.
var isoDuration = regexp.MustCompile(`^P(?:(\d{1,4})W)?(?:(\d{1,5})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,8})M)?(?:(\d{1,10})S)?)?$`)

// parseDuration returns the seconds of an ISO 8601 duration.
func parseDuration(text string) (seconds int64, ok bool) {
	parts := isoDuration.FindStringSubmatch(text)
	if parts == nil {
		return 0, false
	}
	for i, unit := range []int64{7 * 24 * 3600, 24 * 3600, 3600, 60, 1} {
		if part := parts[i+1]; part != "" {
			n, _ := strconv.ParseInt(part, 10, 64) // digits, and few
			seconds += n * unit
			ok = true
		}
	}
	return seconds, ok && text[len(text)-1] != 'T'
}
