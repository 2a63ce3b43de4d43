package fat

// For the tests of exFAT, which make their sticks with a room that reads them with this one.
var (
	Walk     = walk
	Noise    = noise
	Read     = read
	OpenTest = open
)

// Pieces is how many runs of clusters a file has.
func (f *File) Pieces() int { return len(f.extents) }

// Mutants is how many the tests make.
func Mutants() int { return *mutants }
