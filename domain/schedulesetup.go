package domain

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"time"

	"accountledger/eventstore"
)

// ScheduleSetup is a schedule that the ledger plans for every new account that is
// not VERIFIED.
type ScheduleSetup struct {
	SetupID       string              `json:"setupId" doc:"The setup's id."`
	Kind          ScheduleKind        `json:"kind" doc:"reminder, status_change or deletion."`
	OffsetSeconds int64               `json:"offsetSeconds" doc:"Time after account creation, in seconds."`
	ReminderNo    int                 `json:"reminderNo,omitzero" doc:"With kind reminder: the reminder's number."`
	TargetStatus  Status              `json:"targetStatus,omitzero" doc:"With kind status_change: the new status."`
	PeriodSeconds int64               `json:"periodSeconds,omitzero" doc:"The schedule repeats at this interval in seconds until it is cancelled."`
	Revision      eventstore.Revision `json:"revision" doc:"Revision of the configuration in which the setup last changed. Also the ETag."`
}

// maxReminders is the maximum number of reminder setups.
const maxReminders = 5

// ScheduleSetupSet defines or changes a setup.
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
	return objectSetTypes("SCHEDULE_SETUP", "a schedule setup")
}

// ScheduleSetupDeleted removes a setup. Schedules that it planned stay.
type ScheduleSetupDeleted struct {
	SetupID string `json:"setupId" pii:"clear"`
}

func (ScheduleSetupDeleted) eventType() string { return "schedule-setup.deleted.v1" }

func (e ScheduleSetupDeleted) evolve(c *Config, _ Entry) { delete(c.ScheduleSetups, e.SetupID) }

func (e ScheduleSetupDeleted) public(Entry) []publicEvent {
	return objectDeleted("SCHEDULE_SETUP", e.SetupID)
}

func (ScheduleSetupDeleted) catalogue() []PublicType {
	return objectDeletedTypes("SCHEDULE_SETUP", "a schedule setup is deleted")
}

// setups returns the setups in the order in which their schedules fall due.
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

// PutScheduleSetup defines or changes a setup.
type PutScheduleSetup struct {
	SetupID       string
	Kind          ScheduleKind
	Offset        string // after the creation, in ISO 8601, such as P14D
	OffsetSeconds int64  // the same in seconds; only one of the two is set
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
		f.add("/setupId", objectIDRule)
	}
	f.scheduleRules(p.Kind, p.TargetStatus, p.ReminderNo, p.PeriodSeconds)
	if p.Kind == ScheduleReminder && (p.ReminderNo < 1 || p.ReminderNo > maxReminders) {
		f.add("/reminderNo", "must be 1 to %d", maxReminders)
	}
	seconds, pointer := p.OffsetSeconds, "/offsetSeconds"
	if p.Offset != "" {
		var ok bool
		pointer = "/offset"
		if seconds, ok = parseDuration(p.Offset); !ok || p.OffsetSeconds != 0 {
			f.add(pointer, "must be an ISO 8601 duration of weeks, days, hours, minutes and seconds, without offsetSeconds")
		}
	}
	if seconds < 1 || seconds > int64(maxAhead/time.Second) {
		f.add(pointer, "must be 1 second to 100 years")
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

// setupOrder checks that reminders are numbered from 1 without gaps, and that each
// setup is later than the one before: first the reminders by number, then the
// status change, then the deletion.
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
			f.add("/reminderNo", "reminders must be numbered from 1 without gaps or duplicates")
			return
		case s.Kind != ScheduleReminder && s.Kind == before.Kind:
			f.add("/kind", "only one setup of kind status_change and one of kind deletion is allowed")
			return
		case s.OffsetSeconds <= before.OffsetSeconds:
			f.add(offset, "each setup must be later than the one before: reminders by number, then the status change, then the deletion")
			return
		}
	}
}

// DeleteScheduleSetup removes a setup. Reminders must be removed in reverse order,
// so that their numbers have no gap. Schedules that were planned stay.
type DeleteScheduleSetup struct{ SetupID string }

func (d DeleteScheduleSetup) revision(c *Config) eventstore.Revision {
	return setupRevision(c, d.SetupID)
}

func (d DeleteScheduleSetup) decide(c *Config, _ time.Time) ([]Event, error) {
	setup, ok := c.ScheduleSetups[d.SetupID]
	if !ok {
		return nil, refuse(CodeScheduleSetupNotFound, "There is no such schedule setup.")
	}
	for _, s := range c.ScheduleSetups {
		if setup.Kind == ScheduleReminder && s.ReminderNo > setup.ReminderNo {
			return nil, refuse(CodeScheduleSetupOrder, "Reminders must be removed in reverse order: remove number %d first.", s.ReminderNo)
		}
	}
	return []Event{ScheduleSetupDeleted(d)}, nil
}

// isoDuration matches a duration of ISO 8601, section 5.5.2, without fractions
// and without years and months, whose lengths vary.
var isoDuration = regexp.MustCompile(`^P(?:(\d{1,4})W)?(?:(\d{1,5})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,8})M)?(?:(\d{1,10})S)?)?$`)

// parseDuration returns the seconds of an ISO 8601 duration.
func parseDuration(text string) (seconds int64, ok bool) {
	parts := isoDuration.FindStringSubmatch(text)
	if parts == nil {
		return 0, false
	}
	for i, unit := range []int64{7 * 24 * 3600, 24 * 3600, 3600, 60, 1} {
		if part := parts[i+1]; part != "" {
			n, _ := strconv.ParseInt(part, 10, 64) // a few digits: it cannot fail
			seconds += n * unit
			ok = true
		}
	}
	return seconds, ok && text[len(text)-1] != 'T'
}
