package update

import "lifeboat/status"

// Step is what is being done with what lies outside, for people.
type Step uint8

const (
	Idle        Step = iota // nothing, and nothing came of it
	Looking                 // which bundles a source has
	Checking                // every block of a bundle is read
	Writing                 // to the slot
	ReadingBack             // what was written
	Finished                // a bundle was installed
	Failed                  // something was refused and nothing installed
)

func (s Step) String() string {
	return [...]string{"idle", "looking", "checking", "writing", "reading back", "finished", "failed"}[s]
}

// step tells of a step: of an install with version and slot, of Looking with the name of the source.
func (d *Device) step(s Step, version, slot string) {
	if d.Step != nil {
		d.Step(s, version, slot)
	}
}

// ended tells how what was done with the sources ended.
func (d *Device) ended(installed, refused bool) {
	switch {
	case installed:
		d.Say(status.FinishedLine(d.Report.Installed[len(d.Report.Installed)-1]))
		d.step(Finished, "", "")
	case refused:
		d.step(Failed, "", "")
	default:
		d.step(Idle, "", "")
	}
}
