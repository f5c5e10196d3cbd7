"""Results that a button leads to are scrolled into view where they are not, as above a long form."""

import json

SHOW_HEAD = """<script>
const pressedAt = {};  // {id of what was clicked: when}
let movedAt = 0;  // when the user last scrolled or did something; content that arrives scrolls the page, too
document.addEventListener('click', event => {
    const id = event.target.closest?.('[id]')?.id;
    if (id) pressedAt[id] = performance.now();
}, true);
for (const kind of ['wheel', 'touchmove', 'keydown', 'pointerdown'])
    document.addEventListener(kind, () => { movedAt = performance.now(); }, {capture: true, passive: true});
window.graloraShow = (target, button) => {  // who has scrolled away from the button stays there
    const inSight = element => {
        const {top, bottom} = element.getBoundingClientRect();
        return (top + bottom) / 2 > 0 && (top + bottom) / 2 < innerHeight;
    };
    const since = pressedAt[button] ?? performance.now();
    const end = performance.now() + 3000;  // what has just become visible is not there at once, or is moved
    let shown = false;
    const show = () => {
        const element = document.getElementById(target), from = document.getElementById(button);
        if (movedAt > since && (shown || !(from && inSight(from)))) return;
        if (element?.offsetParent && !inSight(element)) {
            const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
            const block = element.offsetHeight > innerHeight ? 'start' : 'center';
            element.scrollIntoView({block, behavior: still ? 'auto' : 'smooth'});
            shown = true;
        }
        if (performance.now() < end) setTimeout(show, element?.offsetParent ? 500 : 50);
    };
    show();
};
</script>"""


def showing(target: str, button: str | None = None) -> str:
    """JavaScript of an event without outputs; target and button: their elem_id."""
    return f"() => {{ graloraShow({json.dumps(target)}, {json.dumps(button)}); return []; }}"
