from g2l_plugin.metrics import cka, knn, plism, robustness
from g2l_plugin.metrics.families import FAMILIES, family_of, neighbours_of


def test_a_name_belongs_to_the_family_whose_pattern_matches_all_of_it():
    assert family_of("KNNAccuracy") is knn.KNN
    assert family_of("LinearCKAUnbiased") is cka.CKA
    assert family_of("LinearCKA") is cka.BIASED_CKA
    assert family_of("KNNBalancedAccuracy") is None
    assert family_of("RobustnessIndex/k=20") is robustness.ROBUSTNESS
    assert family_of("Top10Accuracy/scanner") is plism.RETRIEVAL
    assert len({family.key for family in FAMILIES}) == len(FAMILIES)


def test_the_number_of_neighbours_is_read_from_the_name():
    assert neighbours_of("RobustnessIndex/k=20") == 20
    assert neighbours_of("Top10Accuracy/all") == 10
    assert neighbours_of("KNNAccuracy") is None
    assert neighbours_of("CosineSimilarity/all") is None
