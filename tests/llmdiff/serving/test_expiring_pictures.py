"""Pictures that wait behind a URL: for how long, and how many."""

from llmdiff.serving.expiring_pictures import ExpiringPictures


def test_pictures_behind_urls_expire_and_are_bounded() -> None:
    now = [0.0]
    store = ExpiringPictures(max_bytes=10, lifetime_s=60, clock=lambda: now[0])
    first = store.add(b"1234")
    now[0] = 59
    second = store.add(b"1234")
    assert (store.get(first), store.get(second)) == (b"1234", b"1234")
    now[0] = 60
    assert (store.get(first), store.get(second)) == (None, b"1234")
    third, fourth = store.add(b"1234"), store.add(b"1234")
    assert [store.get(name) for name in (second, third, fourth)] == [None, b"1234", b"1234"]
