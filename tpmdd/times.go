package tpmdd

import "time"

// Timeouts of an interface before a TPM 1.2 said its own, of TPM 2.0, and the longer of both for the time
// before the family is known (TIS 1.3, 5.5.1.3; PTP 1.05, 6.5.1.4).
var (
	timeouts12  = Timeouts{A: 750 * time.Millisecond, B: 4 * time.Second, C: 750 * time.Millisecond, D: 750 * time.Millisecond}
	timeouts20  = Timeouts{A: 750 * time.Millisecond, B: 4 * time.Second, C: 200 * time.Millisecond, D: 30 * time.Millisecond}
	timeoutsAny = timeouts12
)

// Durations bound commands, by how long the specification says they take.
type Durations struct{ Short, Medium, Long, LongLong time.Duration }

var durations20 = Durations{Short: 20 * time.Millisecond, Medium: 750 * time.Millisecond, Long: 2 * time.Second, LongLong: 5 * time.Minute}

// durationsEarly are a TPM 1.2's until it says its own: far more than TIS 1.3 (5.5.1.3) has for chips that say none.
var durationsEarly = Durations{Short: 2 * time.Second, Medium: 5 * time.Second, Long: 20 * time.Second}

// What a TPM 1.2 says of its own times is believed up to here: some chips count in other units than they should.
const (
	longestTimeout  = 10 * time.Second
	longestDuration = 5 * time.Minute
)

// defaultDuration is for a command of which nothing is known.
const defaultDuration = 2 * time.Minute

// class is how long a command takes.
type class uint8

const (
	unknown class = iota
	short
	medium
	long
	longLong
)

// of gives a class's time; 0 where there is none.
func (d Durations) of(c class) time.Duration {
	return [...]time.Duration{unknown: 0, short: d.Short, medium: d.Medium, long: d.Long, longLong: d.LongLong}[c]
}

// classes12 are the durations of TPM 1.2's ordinals (TPM Main part 2, 17), given as ranges. Everything else
// has none, or none that is short, medium or long.
var classes12 = []struct {
	first, last uint32
	class       class
}{
	{10, 11, short}, {12, 12, medium}, {13, 14, long}, {15, 15, medium}, {16, 17, short}, {18, 18, medium}, {19, 19, long},
	{20, 21, short}, {22, 24, medium}, {25, 26, short}, {27, 27, medium}, {28, 29, short}, {30, 30, medium}, {31, 31, long},
	{32, 32, medium}, {33, 35, short}, {36, 37, medium}, {40, 40, medium}, {41, 41, long}, {42, 42, medium}, {43, 48, short},
	{49, 49, long}, {50, 51, medium}, {60, 62, medium}, {63, 64, short}, {65, 65, medium}, {70, 71, short}, {80, 80, long},
	{82, 82, medium}, {83, 83, long}, {84, 84, short}, {90, 94, short}, {100, 100, medium}, {101, 102, short}, {110, 117, short},
	{120, 121, long}, {122, 122, medium}, {124, 126, short}, {127, 127, long}, {128, 130, short}, {131, 131, medium},
	{133, 133, short}, {134, 134, medium}, {140, 141, short}, {150, 150, short}, {151, 152, medium}, {153, 154, short},
	{160, 163, short}, {170, 170, long}, {180, 180, medium}, {181, 181, short}, {182, 185, medium}, {186, 186, short},
	{200, 200, short}, {204, 209, short}, {210, 210, medium}, {212, 214, medium}, {216, 216, medium}, {219, 224, short},
	{230, 230, short}, {231, 231, long}, {232, 232, medium}, {240, 240, short}, {242, 242, medium},
}

// classes20 are the commands of TPM 2.0 that have a duration (PTP 1.05, table 17), and those that make keys, for which it gives
// none and a TPM may take minutes.
var classes20 = map[uint32]class{
	CCStartup: medium, CCSelfTest: long, CCGetRandom: long, CCSequenceUpdate: medium, CCSequenceComplete: medium,
	CCEventSequenceComplete: medium, CCHashSequenceStart: medium, CCVerifySignature: longLong, CCPCRExtend: medium,
	CCHierarchyControl: long, CCHierarchyChangeAuth: long, CCGetCapability: medium, CCNVRead: long,
	CCCreatePrimary: longLong, CCCreate: longLong, CCCreateLoaded: longLong,
}

// Duration is how long a command may take, at most.
func (c *Chip) Duration(code uint32) time.Duration {
	kind := unknown
	if c.Family() == TPM12 {
		for _, r := range classes12 {
			if code >= r.first && code <= r.last {
				kind = r.class
			}
		}
	} else {
		kind = classes20[code]
	}
	if d := c.identity.Durations.of(kind); d > 0 {
		return d
	}
	return defaultDuration
}
